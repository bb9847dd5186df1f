/* Two engines in one process, their work interleaved call by call and from two threads: each answers as if alone. */
#include "check.h"

enum { REQUESTS = 6, ROUNDS = 5 };

static const char *const files[] = {"lora", "lora_all"};

static gw_engine *open_one(int which) {
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.threads = 1 + which;
    options.kv_format = which ? GW_KV_F32 : GW_KV_F16;
    options.prefill_chunk = which ? 16 : 0;
    return open_with(&options);
}

/* Request `i` of an engine; the names are the same in both, the adapters are not. */
static uint64_t submit(const gw_engine *engine, int i) {
    uint32_t tokens[40];
    prompt(tokens, 40, (uint32_t)i);
    const gw_use use = {"x", 1, 1.0f, 0};
    gw_request request = ask(tokens, 10 + 5 * (size_t)i, 10);
    request.adapters = &use;
    request.adapter_count = (size_t)i % 2;
    uint64_t id = 0;
    WORKS(gw_submit(engine, &request, &id, &error));
    return id;
}

typedef struct {
    gw_engine *engine;
    answer alone[REQUESTS];
} half;

static void *work(void *user) {
    half *h = user;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t ids[REQUESTS];
        for (int i = 0; i < REQUESTS; i++) ids[i] = submit(h->engine, i);
        for (int i = REQUESTS - 1; i >= 0; i--) {
            const answer found = poll_all(h->engine, ids[i]);
            CHECK(same(&found, &h->alone[i]));
        }
    }
    return NULL;
}

int main(int count, char **arguments) {
    begin(count, arguments);
    static half halves[2];
    for (int e = 0; e < 2; e++) {
        gw_engine *engine = open_one(e);
        load(engine, "x", files[e]);
        for (int i = 0; i < REQUESTS; i++) halves[e].alone[i] = poll_all(engine, submit(engine, i));
        gw_engine_close(&engine);
    }
    CHECK(!same(&halves[0].alone[1], &halves[1].alone[1]));

    uint64_t ids[2][REQUESTS], generations[2];
    for (int e = 0; e < 2; e++) {
        halves[e].engine = open_one(e);
        generations[e] = load(halves[e].engine, "x", files[e]);
    }
    CHECK(generations[0] != generations[1]);
    for (int i = 0; i < REQUESTS; i++)
        for (int e = 0; e < 2; e++) ids[e][i] = submit(halves[e].engine, i);
    for (int step = 0; step < 4; step++)
        for (int e = 0; e < 2; e++) WORKS(gw_step(halves[e].engine, NULL, &error));
    for (int i = 0; i < REQUESTS; i++)
        for (int e = 0; e < 2; e++) {
            const answer found = poll_all(halves[e].engine, ids[e][i]);
            CHECK(same(&found, &halves[e].alone[i]));
        }

    pthread_t threads[2];
    for (int e = 0; e < 2; e++) CHECK(pthread_create(&threads[e], NULL, work, &halves[e]) == 0);
    for (int e = 0; e < 2; e++) CHECK(pthread_join(threads[e], NULL) == 0);

    /* One ends in the middle of its work; the other does not notice. */
    for (int i = 0; i < REQUESTS; i++) {
        submit(halves[0].engine, i);
        ids[1][i] = submit(halves[1].engine, i);
    }
    WORKS(gw_step(halves[0].engine, NULL, &error));
    gw_engine_close(&halves[0].engine);
    for (int i = 0; i < REQUESTS; i++) {
        const answer found = poll_all(halves[1].engine, ids[1][i]);
        CHECK(same(&found, &halves[1].alone[i]));
    }
    gw_engine_close(&halves[1].engine);
    return 0;
}
