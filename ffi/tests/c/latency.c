/* How long after gw_cancel a long prompt is given up: from the call to its last event, with a prompt of 4,000 tokens that is
 * cancelled at moments all over its reading. Prints milliseconds, and fails if half of the times it takes more than 50; where
 * it is well it takes one. Usage: latency MODEL [TIMES] */
#include "check.h"
#include <time.h>

enum { LENGTH = 4000, MOST_TIMES = 1000, MOST_MS = 50 };

static gw_engine *engine;
static double finished;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static void wait_ms(double ms) {
    const struct timespec time = {(time_t)(ms / 1e3), (long)(ms * 1e6) % 1000000000};
    nanosleep(&time, NULL);
}

static int32_t hear(void *user, const gw_event *event) {
    if (event->kind == GW_EVENT_TOKEN) return 1; /* The prompt was read: it is over. */
    finished = now();
    *(int *)user = event->finish;
    return 0;
}

static void *step(void *unused) {
    (void)unused;
    for (int32_t live = 1; live;) WORKS(gw_step(engine, &live, &error));
    return NULL;
}

static uint64_t start(const uint32_t *tokens, int *finish, pthread_t *thread) {
    gw_request request = ask(tokens, LENGTH, 1);
    uint64_t id = 0;
    request.on_event = hear;
    request.user = finish;
    *finish = 0;
    WORKS(gw_submit(engine, &request, &id, &error));
    CHECK(pthread_create(thread, NULL, step, NULL) == 0);
    return id;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **arguments) {
    begin(count, arguments);
    const int times = count > 2 ? atoi(arguments[2]) : 20;
    CHECK(times > 0 && times <= MOST_TIMES);
    gw_source *source = NULL;
    WORKS(gw_source_path(arguments[1], GW_NUL, 0, &source, &error));
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.flags = GW_ENGINE_NO_PREFIXES;
    WORKS(gw_engine_open(source, &options, &engine, &error));
    gw_source_free(&source);
    static uint32_t tokens[LENGTH];
    for (uint32_t i = 0; i < LENGTH; i++) tokens[i] = 100 + i * 17 % 40000;

    int finish = 0;
    pthread_t thread;
    double from = now();
    start(tokens, &finish, &thread);
    pthread_join(thread, NULL);
    const double whole = finished - from;

    static double latency[MOST_TIMES];
    for (int i = 0; i < times; i++) {
        const uint64_t id = start(tokens, &finish, &thread);
        wait_ms(whole * (0.02 + 0.9 * i / times));
        from = now();
        WORKS(gw_cancel(engine, id, &error));
        pthread_join(thread, NULL);
        EQUAL(GW_FINISH_CANCELLED, finish);
        latency[i] = finished - from;
    }
    qsort(latency, (size_t)times, sizeof *latency, by_size);
    printf("a prompt of %d tokens takes %.0f ms; cancelled %d times: median %.1f ms, max %.1f ms\n", LENGTH, whole, times,
           latency[times / 2], latency[times - 1]);
    CHECK(latency[times / 2] <= MOST_MS);
    gw_engine_close(&engine);
    return 0;
}
