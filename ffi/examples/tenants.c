/* Many tenants with an adapter each, of which memory holds 64 at a time; adapters are replaced under the requests.
 *
 *     tenants MODEL ADAPTERS [TENANTS [REQUESTS [verify]]]
 *
 * ADAPTERS is a folder of as many as there are tenants (500), called 0, 1 and so on: `loras` makes some up. Ends with 1 if they
 * ever took more memory than they may, and, with `verify`, if an answer differs in a bit from its single run. */
#define _POSIX_C_SOURCE 200809L
#include <graftwork.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { HELD = 64, AT_ONCE = 32, PROMPT = 8, TOKENS = 4, EACH = 10 /* Requests for a replacement. */ };

typedef struct { uint32_t number, adapter; uint64_t hash; /* Of the tokens and logits that came. */ } question;
typedef struct { char name[16]; uint32_t adapter; uint64_t generation; } tenant;

static const char *folder;
static gw_engine *engine;
static tenant *tenants;
static uint32_t count, requests, replaced;
static pthread_mutex_t naming = PTHREAD_MUTEX_INITIALIZER; /* Held while it must be certain what a name means. */
static atomic_uint ended;

/* Ends the program if a call failed. */
static void must(gw_status status, gw_error **error) {
    if (status == GW_OK) return;
    fprintf(stderr, "tenants: %s: %s\n", gw_status_name(status), *error ? gw_error_message(*error, NULL) : "");
    exit(EXIT_FAILURE);
}

static uint32_t chance(uint32_t *state) { return (*state = *state * 1664525u + 1013904223u) >> 8; }

/* Gives a tenant's name an adapter: its first, or in place of the one that it has. */
static gw_status give(const gw_engine *to, tenant *of, uint32_t adapter, gw_error **error) {
    char path[4096];
    gw_source *source = NULL;
    snprintf(path, sizeof path, "%s/%u", folder, adapter);
    must(gw_source_path(path, GW_NUL, 0, &source, error), error);
    const gw_status status =
        of->generation ? gw_adapter_replace(to, of->name, GW_NUL, source, of->generation, &of->generation, error)
                       : gw_adapter_load(to, of->name, GW_NUL, source, &of->generation, error);
    if (status == GW_OK) of->adapter = adapter;
    return gw_source_free(&source), status;
}

static void *replace(void *unused) {
    for (uint32_t state = 1; ended < requests;) {
        gw_error *error = NULL;
        pthread_mutex_lock(&naming);
        const gw_status status = give(engine, &tenants[chance(&state) % count], chance(&state) % count, &error);
        pthread_mutex_unlock(&naming);
        if (status != GW_ERR_BUSY) must(status, &error), replaced++; /* Busy: no room beside adapters in use. */
        gw_error_free(&error);
        while (ended < requests && ended < EACH * replaced) nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return unused;
}

static int32_t hear(void *user, const gw_event *event) {
    question *asked = user;
    const unsigned char *bytes = (const unsigned char *)event->logits;
    if (event->kind == GW_EVENT_FAILED) fprintf(stderr, "tenants: %s\n", event->message), exit(EXIT_FAILURE);
    asked->hash = asked->hash * 31 + event->token;
    for (size_t i = 0; i < sizeof(float) * event->logits_count; i++) asked->hash = (asked->hash ^ bytes[i]) * 1099511628211u;
    ended += event->kind == GW_EVENT_FINISHED;
    return 0;
}

static void submit(const gw_engine *to, const char *name, uint32_t flags, question *asked) {
    gw_request request = GW_REQUEST_INIT;
    gw_error *error = NULL;
    uint32_t tokens[PROMPT], state = asked->number;
    for (int i = 0; i < PROMPT; i++) tokens[i] = chance(&state) % 256;
    request.tokens = tokens, request.token_count = PROMPT, request.max_tokens = TOKENS, request.flags = flags;
    request.adapters = &(gw_use){name, GW_NUL, 1, 0}, request.adapter_count = 1, request.on_event = hear, request.user = asked;
    must(gw_submit(to, &request, NULL, &error), &error);
}

/* Megabytes of memory that the process has touched. */
static double resident(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%*d %ld", &pages) != 1 || fclose(file)) return 0;
    return 1e-6 * (double)pages * (double)sysconf(_SC_PAGESIZE);
}

int main(int argc, char **argv) {
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    gw_memory memory = GW_MEMORY_INIT;
    gw_adapter_info info = GW_ADAPTER_INFO_INIT;
    gw_source *source = NULL; gw_engine *alone = NULL; gw_adapters *list = NULL; gw_error *error = NULL;
    tenant only = {"alone", 0, 0};
    const uint32_t flags = GW_REQUEST_IGNORE_EOS | (argc > 5 ? GW_REQUEST_LOGITS : 0);
    uint32_t state = 2, sent = 0, wrong = 0; uint64_t highest = 0, loads = 0;
    struct timespec start, end; pthread_t replacer; double early = 0;

    count = argc > 3 ? (uint32_t)atol(argv[3]) : 500, requests = argc > 4 ? (uint32_t)atol(argv[4]) : 5000;
    question *asked = calloc(requests, sizeof *asked);
    tenants = calloc(count, sizeof *tenants);
    if (argc < 3 || !count || !requests || !asked || !tenants)
        return fprintf(stderr, "usage: tenants MODEL ADAPTERS [TENANTS [REQUESTS [verify]]]\n"), EXIT_FAILURE;
    folder = argv[2], options.kv_bytes = 64 << 20, options.max_batch = AT_ONCE;
    must(gw_source_path(argv[1], GW_NUL, 0, &source, &error), &error);
    must(gw_engine_open(source, &options, &alone, &error), &error);
    must(give(alone, &only, 0, &error), &error);
    must(gw_engine_memory(alone, &memory, &error), &error);
    options.adapter_bytes = HELD * memory.adapters;
    must(gw_engine_open(source, &options, &engine, &error), &error);
    for (uint32_t i = 0; i < count; i++)
        sprintf(tenants[i].name, "%u", i), must(give(engine, &tenants[i], i, &error), &error);
    timespec_get(&start, TIME_UTC);
    if (pthread_create(&replacer, NULL, replace, NULL)) return EXIT_FAILURE;
    while (ended < requests) {
        for (; sent < requests && sent - ended < AT_ONCE; sent++) {
            pthread_mutex_lock(&naming);
            const tenant *of = &tenants[chance(&state) % count];
            asked[sent] = (question){sent, of->adapter, 0};
            submit(engine, of->name, flags, &asked[sent]);
            pthread_mutex_unlock(&naming);
        }
        must(gw_step(engine, NULL, &error), &error);
        must(gw_engine_memory(engine, &memory, &error), &error);
        if (memory.adapters > highest) highest = memory.adapters;
        if (!early && ended >= requests / 10) early = resident();
    }
    timespec_get(&end, TIME_UTC);
    pthread_join(replacer, NULL);
    must(gw_adapter_list(engine, &list, &error), &error);
    for (size_t i = 0; gw_adapters_get(list, i, &info) == GW_OK; i++) loads += info.loads;
    const double seconds = difftime(end.tv_sec, start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
    printf("%u requests in %.2f s: %.0f/s; %u adapters replaced, %.0f loads; adapters took at most %.0f bytes of %.0f; memory "
           "%.1f MB after a tenth, %.1f MB at the end\n", requests, seconds, requests / seconds, replaced, (double)loads,
           (double)highest, (double)memory.adapters_limit, early, resident());
    for (uint32_t i = 0; argc > 5 && i < requests; i++) {
        question single = {i, asked[i].adapter, 0};
        must(give(alone, &only, single.adapter, &error), &error);
        submit(alone, only.name, flags, &single);
        for (int32_t live = 1; live;) must(gw_step(alone, &live, &error), &error);
        wrong += single.hash != asked[i].hash;
    }
    if (argc > 5) printf("%u of %u answers differ from their single runs\n", wrong, requests);
    gw_adapters_free(&list), gw_engine_close(&engine), gw_engine_close(&alone), gw_source_free(&source), free(tenants), free(asked);
    return wrong || highest > memory.adapters_limit;
}
