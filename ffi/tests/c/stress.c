/* Threads that submit, cancel, save, resume, swap and pin adapters at once, for as many seconds as the second argument says:
 * every answer is that of its single run, or the beginning of it if it was cancelled, or the end of it if it was resumed, and
 * has one end. Memory holds fewer adapters than there are.
 *
 * Names "0", "1" and "2" mean different adapters from moment to moment, so an answer must be that of one of the adapters
 * that its name could mean. Name "fixed" always means the same. */
#include "check.h"
#include <time.h>

enum { PROMPTS = 6, FILES = 4, THREADS = 4, LENGTH = 12, NAMES = 3 };

static const char *const files[FILES] = {"lora", "lora_all", "lora_bias", "lora_rslora"};
static gw_engine *engine;
static gw_source *sources[FILES];
static answer single[PROMPTS][FILES + 1]; /* The last without an adapter. */
static uint32_t prompts[PROMPTS][64];
static atomic_int stop, answered, cancelled, refused, busy, swaps, resumed, dropped, given;

static size_t length_of(int which) { return 5 + 11 * (size_t)which; }

static gw_request request_of(int which, const gw_use *use) {
    gw_request request = ask(prompts[which], length_of(which), LENGTH);
    request.adapters = use;
    request.adapter_count = use != NULL;
    return request;
}

/* Whether `found` is the beginning of `whole`, or all of it if nothing ended it. */
static int agrees(const answer *found, const answer *whole) {
    if (found->finish != GW_FINISH_CANCELLED) return same(found, whole);
    return found->count <= whole->count && memcmp(found->tokens, whole->tokens, found->count * 4) == 0;
}

/* `file`: what the name means; FILES: no adapter; -1: any of the adapters. */
static void check_answer(const answer *found, int which, int file) {
    int good = 0;
    for (int i = 0; i <= FILES; i++)
        if (file == i || (file < 0 && i < FILES)) good |= agrees(found, &single[which][i]);
    if (!good) FAIL("prompt %d, adapter %d: %zu tokens, finish %d", which, file, found->count, found->finish);
    atomic_fetch_add(found->finish == GW_FINISH_CANCELLED ? &cancelled : &answered, 1);
}

/* A request with a callback. */
typedef struct {
    answer found;
    int which, file;
    atomic_int done;
} told;

static int32_t tell_it(void *user, const gw_event *event) {
    told *t = user;
    CHECK(!atomic_load(&t->done));
    if (add_event(&t->found, event)) {
        check_answer(&t->found, t->which, t->file);
        atomic_store(&t->done, 1);
    }
    return 0;
}

static void drop_it(void *user) {
    told *t = user;
    CHECK(atomic_load(&t->done));
    atomic_fetch_add(&dropped, 1);
    free(t);
}

static unsigned next(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static const char *const names[NAMES] = {"0", "1", "2"};

static void swap(unsigned *state) {
    const char *name = names[next(state) % NAMES];
    const gw_source *source = sources[next(state) % FILES];
    gw_status status = GW_OK;
    if (next(state) % 4 == 0) {
        status = gw_adapter_unload(engine, name, 1, NULL);
        CHECK(status == GW_OK || status == GW_ERR_NOT_FOUND);
    }
    status = gw_adapter_replace(engine, name, 1, source, 0, NULL, NULL);
    if (status == GW_ERR_NOT_FOUND) {
        status = gw_adapter_load(engine, name, 1, source, NULL, NULL);
        CHECK(status == GW_OK || status == GW_ERR_CONFLICT || status == GW_ERR_BUSY);
    } else {
        CHECK(status == GW_OK || status == GW_ERR_BUSY);
    }
    atomic_fetch_add(status == GW_ERR_BUSY ? &busy : &swaps, 1);
    status = gw_adapter_pin(engine, "fixed", GW_NUL, next(state) % 2, NULL);
    CHECK(status == GW_OK || status == GW_ERR_BUSY);
}

/* Saves a request and hears what follows in another. Its adapter may be gone, or it may have ended. */
static void resume(uint64_t id, int which, int file) {
    gw_state *state = NULL;
    gw_source *source = NULL;
    uint64_t again = 0;
    size_t size = 0;
    gw_status status = gw_state_save(engine, id, &state, NULL);
    if (status == GW_ERR_NOT_FOUND) return;
    EQUAL(GW_OK, status);
    const void *data = gw_state_data(state, &size);
    WORKS(gw_source_memory(data, size, 0, NULL, NULL, &source, &error));
    status = gw_state_resume(engine, source, NULL, NULL, NULL, &again, NULL);
    gw_source_free(&source);
    gw_state_free(&state);
    if (status == GW_ERR_FORMAT) {
        CHECK(file < 0);
        return;
    }
    EQUAL(GW_OK, status);
    const answer found = poll_all(engine, again);
    int good = 0;
    for (int i = 0; i <= FILES; i++) {
        const answer *whole = &single[which][i];
        if (file != i && (file >= 0 || i == FILES)) continue;
        good |= found.finish == whole->finish && found.count <= whole->count &&
                memcmp(found.tokens, whole->tokens + whole->count - found.count, found.count * 4) == 0;
    }
    if (!good) FAIL("prompt %d, adapter %d, resumed: %zu tokens, finish %d", which, file, found.count, found.finish);
    atomic_fetch_add(&resumed, 1);
}

/* Submits, and says what the name meant. 0 if the name is free at the moment. */
static uint64_t submit(unsigned *state, gw_request request, gw_use *use, int *file) {
    const unsigned choice = next(state) % 6;
    uint64_t id = 0;
    *file = choice == 0 ? FILES : choice == 1 ? 1 : -1;
    use->name = choice == 1 ? "fixed" : names[choice % NAMES];
    use->name_size = GW_NUL;
    use->weight = 1;
    use->reserved = 0;
    request.adapters = use;
    request.adapter_count = choice != 0;
    told *t = request.user;
    if (t) t->file = *file;
    const gw_status status = gw_submit(engine, &request, &id, NULL);
    if (status != GW_OK) {
        EQUAL(GW_ERR_NOT_FOUND, status);
        CHECK(*file < 0);
        atomic_fetch_add(&refused, 1);
    }
    return id;
}

static void *run(void *user) {
    unsigned state = *(unsigned *)user;
    while (!atomic_load(&stop)) {
        const int which = (int)(next(&state) % PROMPTS), kind = (int)(next(&state) % 8);
        int file = 0;
        gw_use use;
        if (kind == 0) swap(&state);
        if (kind < 5) {
            /* Polled by id, perhaps cancelled at some token. */
            gw_request request = request_of(which, NULL);
            const uint64_t id = submit(&state, request, &use, &file);
            const unsigned cancel_at = next(&state) % 3 ? 1000 : next(&state) % LENGTH;
            const unsigned save_at = next(&state) % 4 ? 1000 : next(&state) % LENGTH;
            answer found;
            memset(&found, 0, sizeof found);
            for (int last = !id; !last;) {
                if (found.count == save_at) resume(id, which, file);
                if (found.count == cancel_at) {
                    const gw_status status = gw_cancel(engine, id, NULL);
                    CHECK(status == GW_OK || status == GW_ERR_NOT_FOUND);
                }
                gw_event *event = NULL;
                WORKS(gw_poll(engine, id, next(&state) % 2 ? GW_FOREVER : 1, &event, &error));
                if (event) CHECK(event->request == id);
                if (event) last = add_event(&found, event);
                gw_event_free(&event);
            }
            if (id) check_answer(&found, which, file);
        } else {
            /* Told by callback, on whichever thread steps. */
            told *t = calloc(1, sizeof *t);
            CHECK(t != NULL);
            t->which = which;
            gw_request request = request_of(which, NULL);
            request.on_event = tell_it;
            request.user = t;
            request.drop = drop_it;
            const uint64_t id = submit(&state, request, &use, &file);
            if (!id) free(t);
            if (id) atomic_fetch_add(&given, 1);
            if (id && next(&state) % 3 == 0) {
                const gw_status status = gw_cancel(engine, id, NULL);
                CHECK(status == GW_OK || status == GW_ERR_NOT_FOUND);
            }
            WORKS(gw_step(engine, NULL, &error));
        }
    }
    return NULL;
}

int main(int count, char **arguments) {
    begin(count, arguments);
    const double seconds = count > 2 ? atof(arguments[2]) : 5;
    for (int i = 0; i < PROMPTS; i++) prompt(prompts[i], length_of(i), (uint32_t)i);
    uint64_t largest = 0; /* Bytes of an adapter. */
    gw_memory memory = GW_MEMORY_INIT;
    engine = open_small();
    for (int file = 0; file <= FILES; file++) {
        const gw_use use = {"single", GW_NUL, 1.0f, 0};
        if (file < FILES) {
            sources[file] = source_of(files[file]);
            WORKS(gw_adapter_load(engine, "single", GW_NUL, sources[file], NULL, &error));
            WORKS(gw_engine_memory(engine, &memory, &error));
            if (memory.adapters > largest) largest = memory.adapters;
        }
        for (int i = 0; i < PROMPTS; i++) {
            const gw_request request = request_of(i, file < FILES ? &use : NULL);
            single[i][file] = answer_to(engine, &request);
        }
        if (file < FILES) WORKS(gw_adapter_unload(engine, "single", GW_NUL, &error));
    }
    gw_engine_close(&engine);
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.threads = 2;
    options.adapter_bytes = 3 * largest;
    engine = open_with(&options);
    WORKS(gw_adapter_load(engine, "fixed", GW_NUL, sources[1], NULL, &error));

    pthread_t threads[THREADS];
    unsigned seeds[THREADS];
    for (int i = 0; i < THREADS; i++) {
        seeds[i] = 7u + 1000u * (unsigned)i;
        CHECK(pthread_create(&threads[i], NULL, run, &seeds[i]) == 0);
    }
    const struct timespec time = {(time_t)seconds, 0};
    nanosleep(&time, NULL);
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    for (int32_t live = 1; live;) WORKS(gw_step(engine, &live, &error));

    EQUAL(given, dropped);
    WORKS(gw_engine_memory(engine, &memory, &error));
    EQUAL(0, memory.kv_used);
    EQUAL(3 * largest, memory.adapters_limit);
    CHECK(memory.adapters <= memory.adapters_limit);
    CHECK(answered > 20 && cancelled > 0 && swaps > 0 && resumed > 0);
    gw_engine_close(&engine);
    for (int i = 0; i < FILES; i++) gw_source_free(&sources[i]);
    if (count > 3) printf("%d answered, %d cancelled, %d refused, %d resumed, %d swaps, %d without room\n", answered, cancelled, refused,
                          resumed, swaps, busy);
    return 0;
}
