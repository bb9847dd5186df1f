/* Engines on lent threads: whatever becomes of their tasks, answers are equal to the bit, nothing hangs, and tasks that
 * come late touch nothing that is gone. Whatever waits for ever is ended by an alarm. */
#include "check.h"

enum { PROMPTS = 4, LENGTH = 8, MOST_LENT = 7, QUEUE = 4096 };

typedef struct {
    gw_task_fn run;
    void *task;
} item;

/* A pool, and a queue for the other executors. */
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t more;
    pthread_t threads[MOST_LENT];
    item items[QUEUE];
    size_t first, end, thread_count;
    int closed, drops;
    atomic_int given, over;
} pool;

static int take(pool *p, item *next) {
    CHECK(pthread_mutex_lock(&p->mutex) == 0);
    while (p->first == p->end && !p->closed) CHECK(pthread_cond_wait(&p->more, &p->mutex) == 0);
    const int any = p->first < p->end;
    if (any) *next = p->items[p->first++ % QUEUE];
    CHECK(pthread_mutex_unlock(&p->mutex) == 0);
    return any;
}

static void *serve(void *user) {
    pool *p = user;
    for (item next; take(p, &next); atomic_fetch_add(&p->over, 1)) next.run(next.task);
    return NULL;
}

static void put(void *user, gw_task_fn run, void *task) {
    pool *p = user;
    CHECK(pthread_mutex_lock(&p->mutex) == 0);
    CHECK(p->end - p->first < QUEUE);
    p->items[p->end++ % QUEUE] = (item){run, task};
    CHECK(pthread_cond_signal(&p->more) == 0);
    CHECK(pthread_mutex_unlock(&p->mutex) == 0);
    atomic_fetch_add(&p->given, 1);
}

/* Runs it on this thread, which must not wait for itself. */
static void run_here(void *user, gw_task_fn run, void *task) {
    atomic_fetch_add(&((pool *)user)->given, 1);
    run(task);
    atomic_fetch_add(&((pool *)user)->over, 1);
}

static void *run_one(void *user) {
    item *one = user;
    one->run(one->task);
    free(one);
    return NULL;
}

/* A thread for each. */
static void spawn(void *user, gw_task_fn run, void *task) {
    item *one = malloc(sizeof *one);
    pthread_t thread;
    CHECK(one != NULL);
    *one = (item){run, task};
    atomic_fetch_add(&((pool *)user)->given, 1);
    CHECK(pthread_create(&thread, NULL, run_one, one) == 0);
    CHECK(pthread_detach(thread) == 0);
}

/* Starts each some tasks later, so that it comes to another step than its own. */
static void put_late(void *user, gw_task_fn run, void *task) {
    pool *p = user;
    put(user, run, task);
    item late;
    if (p->end - p->first > 5 && take(p, &late)) spawn(user, late.run, late.task);
}

/* The pool ends: what is left in its queue is run all the same. */
static void end(void *user) {
    pool *p = user;
    CHECK(pthread_mutex_lock(&p->mutex) == 0);
    CHECK(p->drops++ == 0);
    p->closed = 1;
    CHECK(pthread_cond_broadcast(&p->more) == 0);
    CHECK(pthread_mutex_unlock(&p->mutex) == 0);
    for (size_t i = 0; i < p->thread_count; i++) CHECK(pthread_join(p->threads[i], NULL) == 0);
}

static gw_engine_options options_of(pool *p, size_t lent, uint32_t threads, gw_execute_fn execute) {
    memset(p, 0, sizeof *p);
    CHECK(pthread_mutex_init(&p->mutex, NULL) == 0 && pthread_cond_init(&p->more, NULL) == 0);
    for (; p->thread_count < lent; p->thread_count++)
        CHECK(pthread_create(&p->threads[p->thread_count], NULL, serve, p) == 0);
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.threads = threads;
    options.execute = execute;
    options.execute_user = p;
    options.execute_drop = end;
    return options;
}

static void answers(gw_engine *engine, answer found[PROMPTS]) {
    uint64_t ids[PROMPTS];
    load(engine, "x", "lora");
    for (uint32_t i = 0; i < PROMPTS; i++) {
        uint32_t tokens[80];
        prompt(tokens, 80, i);
        const gw_use use = {"x", 1, 1.0f, 0};
        gw_request request = ask(tokens, 5 + 20 * i, LENGTH);
        request.adapters = &use;
        request.adapter_count = i % 2;
        WORKS(gw_submit(engine, &request, &ids[i], &error));
    }
    for (int i = 0; i < PROMPTS; i++) found[i] = poll_all(engine, ids[i]);
}

/* A model without a tokenizer, which is opened sooner. */
static gw_engine *open_base(const gw_engine_options *options) {
    gw_source *source = source_of("base");
    gw_engine *engine = NULL;
    WORKS(gw_engine_open(source, options, &engine, &error));
    gw_source_free(&source);
    return engine;
}

static void check_pool(const char *what, size_t lent, uint32_t threads, gw_execute_fn execute,
                       const answer expected[PROMPTS]) {
    static pool p;
    static answer found[PROMPTS];
    const gw_engine_options options = options_of(&p, lent, threads, execute);
    gw_engine *engine = open_base(&options);
    gw_engine_info info = GW_ENGINE_INFO_INIT;
    WORKS(gw_engine_describe(engine, &info, &error));
    EQUAL(threads, info.threads);
    EQUAL(0, p.given);
    answers(engine, found);
    for (int i = 0; i < PROMPTS; i++)
        if (!same(&found[i], &expected[i])) FAIL("%s, %u threads: answer %d differs", what, threads, i);
    CHECK(threads == 1 ? p.given == 0 : p.given >= LENGTH * ((int)threads - 1));
    EQUAL(0, p.drops);
    gw_engine_close(&engine);
    EQUAL(1, p.drops);
    /* Those that no thread took: the engine is gone. */
    for (item left; p.first < p.end;) {
        CHECK(take(&p, &left));
        left.run(left.task);
    }
    if (lent) EQUAL(p.given, p.over);
}

/* What is not opened takes nothing. */
static void refused(void) {
    static pool p;
    gw_engine_options options = options_of(&p, 0, 2, put);
    gw_memory memory = GW_MEMORY_INIT;
    gw_engine *engine = NULL;
    gw_source *model = source_of("base"), *none = source_of("nothing");
    WORKS(gw_engine_plan(model, &options, &memory, &error));
    FAILS(GW_ERR_NOT_FOUND, "", gw_engine_open(none, &options, &engine, &error));
    options.device = 7;
    FAILS(GW_ERR_INVALID_ARG, "device", gw_engine_open(model, &options, &engine, &error));
    CHECK(!engine && p.given == 0 && p.drops == 0);
    gw_source_free(&model);
    gw_source_free(&none);
}

int main(int count, char **arguments) {
    begin(count, arguments);
    alarm(300);
    static answer alone[PROMPTS];
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.threads = 1;
    gw_engine *engine = open_base(&options);
    answers(engine, alone);
    gw_engine_close(&engine);
    CHECK(!same(&alone[0], &alone[1]));

    check_pool("a pool", 1, 1, put, alone);
    check_pool("a pool", 2, 3, put, alone);
    check_pool("a pool", 7, 8, put, alone);
    check_pool("too small a pool", 1, 4, put, alone);
    check_pool("nobody", 0, 3, put, alone);
    check_pool("here", 0, 3, run_here, alone);
    check_pool("threads", 0, 3, spawn, alone);
    check_pool("late", 0, 3, put_late, alone);
    check_pool("late", 0, 8, put_late, alone);
    refused();
    /* Detached threads may still be on their way. */
    usleep(200000);
    return 0;
}
