/* Requests that are saved, and go on from every kind of source; bytes that were changed; what is dropped, and when. */
#include "check.h"

enum { PROMPT = 70, LENGTH = 16, AT = 6 };

/* What was heard of a request. */
typedef struct {
    answer answer;
    float logits[LENGTH][VOCAB];
    float logprobs[LENGTH];
    int drops;
    size_t save_at; /* By the callback, if not 0. */
    const gw_engine *engine;
    gw_state *state;
} hearing;

static uint32_t tokens[PROMPT];
static const gw_use use = {"a", 1, 0.5f, 0};

static gw_request question(void) {
    gw_request request = ask(tokens, PROMPT, LENGTH);
    request.flags |= GW_REQUEST_LOGITS | GW_REQUEST_LOGPROBS;
    request.adapters = &use;
    request.adapter_count = 1;
    request.temperature = 0.9f;
    request.top_k = 40;
    request.repetition_penalty = 1.3f;
    request.seed = 11;
    return request;
}

static int add(hearing *h, const gw_event *event) {
    const size_t at = h->answer.count;
    if (event->kind == GW_EVENT_TOKEN) {
        EQUAL(VOCAB, event->logits_count);
        memcpy(h->logits[at], event->logits, sizeof h->logits[at]);
        h->logprobs[at] = event->logprob;
    }
    return add_event(&h->answer, event);
}

static int32_t hear(void *user, const gw_event *event) {
    hearing *h = user;
    CHECK(h->drops == 0);
    add(h, event);
    if (h->save_at && h->answer.count == h->save_at && event->kind == GW_EVENT_TOKEN)
        WORKS(gw_state_save(h->engine, event->request, &h->state, &error));
    return 0;
}

static void drop_hearing(void *user) {
    hearing *h = user;
    CHECK(++h->drops == 1);
}

/* Hears `count` tokens of a request by polling, or all events. */
static void poll_tokens(const gw_engine *engine, uint64_t id, size_t count, hearing *h) {
    for (int last = 0; !last && h->answer.count < count;) {
        gw_event *event = NULL;
        WORKS(gw_poll(engine, id, GW_FOREVER, &event, &error));
        last = add(h, event);
        gw_event_free(&event);
    }
}

/* Whether two runs are equal to the bit. */
static void check_equal(const hearing *expected, const hearing *found) {
    CHECK(same(&expected->answer, &found->answer));
    CHECK(memcmp(expected->logits, found->logits, sizeof found->logits) == 0);
    CHECK(memcmp(expected->logprobs, found->logprobs, sizeof found->logprobs) == 0);
}

static gw_source *lent(const void *data, size_t size) {
    gw_source *source = NULL;
    WORKS(gw_source_memory(data, size, 0, NULL, NULL, &source, &error));
    return source;
}

static int32_t read_from(void *user, uint64_t offset, void *buffer, size_t size) {
    memcpy(buffer, (const char *)user + offset, size);
    return 0;
}

enum { LENT, COPIED, READER, PATH, PATH_COPY, FD, WAYS };

/* The state as a source, in one of the ways. */
static gw_source *source_in(int way, const gw_state *state, const char *path) {
    gw_source *source = NULL;
    size_t size = 0;
    void *data = (void *)(uintptr_t)gw_state_data(state, &size);
    if (way == LENT) return lent(data, size);
    if (way == COPIED) WORKS(gw_source_memory(data, size, GW_SOURCE_COPY, NULL, NULL, &source, &error));
    if (way == READER) {
        gw_reader reader = GW_READER_INIT;
        reader.length = size;
        reader.read = read_from;
        reader.user = data;
        WORKS(gw_source_reader(&reader, &source, &error));
    }
    if (way == PATH || way == PATH_COPY)
        WORKS(gw_source_path(path, GW_NUL, way == PATH ? 0 : GW_SOURCE_COPY, &source, &error));
    if (way == FD) {
        const int fd = open(path, O_RDONLY);
        WORKS(gw_source_fd(fd, 0, 0, 0, &source, &error));
        CHECK(close(fd) == 0);
    }
    return source;
}

/* From every token on, in another engine where the adapter has another name. */
static void goes_on(const gw_engine *engine, const gw_engine *other, const hearing *whole) {
    const gw_request request = question();
    for (size_t at = 0; at < LENGTH; at++) {
        static hearing before, after;
        memset(&before, 0, sizeof before);
        uint64_t id = 0, resumed = 0;
        gw_state *state = NULL;
        WORKS(gw_submit(engine, &request, &id, &error));
        poll_tokens(engine, id, at, &before);
        WORKS(gw_state_save(engine, id, &state, &error));
        size_t size = 0;
        gw_source *source = lent(gw_state_data(state, &size), 0);
        gw_source_free(&source);
        source = lent(gw_state_data(state, NULL), size);
        after = before;
        WORKS(gw_state_resume(at % 2 ? engine : other, source, NULL, NULL, NULL, &resumed, &error));
        gw_source_free(&source);
        gw_state_free(&state);
        CHECK(!state && resumed != 0);
        poll_tokens(at % 2 ? engine : other, resumed, SIZE_MAX, &after);
        check_equal(whole, &after);
        /* What was saved goes on. */
        poll_tokens(engine, id, SIZE_MAX, &before);
        check_equal(whole, &before);
        FAILS(GW_ERR_NOT_FOUND, "", gw_state_save(engine, id, &state, &error));
        CHECK(!state);
    }
}

/* Saved by a callback, told by callbacks, in every way for the bytes to come in. */
static void ways(const gw_engine *engine, const gw_engine *other, const hearing *whole, const char *path) {
    static hearing saved, after;
    gw_request request = question();
    memset(&saved, 0, sizeof saved);
    saved.engine = engine;
    saved.save_at = AT;
    request.on_event = hear;
    request.user = &saved;
    request.drop = drop_hearing;
    WORKS(gw_submit(engine, &request, NULL, &error));
    for (int32_t live = 1; live;) WORKS(gw_step(engine, &live, &error));
    check_equal(whole, &saved);
    CHECK(saved.state && saved.drops == 1);

    /* Over what is there. */
    FILE *file = fopen(path, "w");
    CHECK(file && fputs("another file", file) > 0 && fclose(file) == 0);
    for (int i = 0; i < 2; i++) WORKS(gw_state_write(saved.state, path, strlen(path), &error));
    char partial[128];
    snprintf(partial, sizeof partial, "%s/no/such/folder/state", path);
    CHECK(gw_state_write(saved.state, partial, GW_NUL, &error) != GW_OK && error);
    gw_error_free(&error);
    snprintf(partial, sizeof partial, "%s.partial", path);
    CHECK(access(partial, F_OK) != 0);

    for (int way = 0; way < WAYS; way++) {
        gw_source *source = source_in(way, saved.state, path);
        for (int told = 0; told < 2; told++) {
            memset(&after, 0, sizeof after);
            after.answer.count = AT;
            memcpy(after.answer.tokens, whole->answer.tokens, sizeof after.answer.tokens);
            memcpy(after.logits, whole->logits, AT * sizeof *after.logits);
            memcpy(after.logprobs, whole->logprobs, AT * sizeof *after.logprobs);
            uint64_t id = 0;
            WORKS(gw_state_resume(other, source, told ? hear : NULL, &after, drop_hearing, &id, &error));
            EQUAL(!told, after.drops);
            if (told)
                for (int32_t live = 1; live;) WORKS(gw_step(other, &live, &error));
            else poll_tokens(other, id, SIZE_MAX, &after);
            EQUAL(1, after.drops);
            /* The text of what was heard before came before. */
            const size_t told_before = whole->answer.text_size - after.answer.text_size;
            CHECK(memcmp(whole->answer.text + told_before, after.answer.text, after.answer.text_size) == 0);
            memcpy(after.answer.text, whole->answer.text, sizeof after.answer.text);
            after.answer.text_size = whole->answer.text_size;
            check_equal(whole, &after);
        }
        gw_source_free(&source);
    }

    /* Ended by its callback, by the engine's end, and cancelled. */
    gw_source *source = source_in(LENT, saved.state, path);
    gw_engine *third = open_small();
    load(third, "a", "lora_all");
    static hearing ends[3];
    memset(ends, 0, sizeof ends);
    uint64_t ids[3];
    for (int i = 0; i < 3; i++) WORKS(gw_state_resume(third, source, hear, &ends[i], drop_hearing, &ids[i], &error));
    WORKS(gw_cancel(third, ids[0], &error));
    WORKS(gw_step(third, NULL, &error));
    CHECK(ends[0].drops == 1 && ends[0].answer.finish == GW_FINISH_CANCELLED && ends[0].answer.count == 0);
    gw_engine_close(&third);
    for (int i = 0; i < 3; i++) EQUAL(1, ends[i].drops);
    gw_source_free(&source);
    gw_state_free(&saved.state);
}

static int drops;

static void drop_count(void *user) { ++*(int *)user; }

static int32_t never(void *user, const gw_event *event) {
    (void)user, (void)event;
    FAIL("an event of what was refused");
}

/* Refused with and without a callback: nothing runs, and the data stays the caller's. */
static void refuses(const gw_engine *engine, const void *data, size_t size, gw_status status, const char *word) {
    gw_source *source = lent(data, size);
    for (int told = 0; told < 2; told++) {
        uint64_t id = 0;
        FAILS(status, word, gw_state_resume(engine, source, told ? never : NULL, &drops, drop_count, &id, &error));
        EQUAL(0, id);
        EQUAL(0, drops);
    }
    gw_source_free(&source);
    int32_t live = 1;
    WORKS(gw_step(engine, &live, &error));
    EQUAL(0, live);
}

/* A state's bytes in the middle of an answer. */
static unsigned char *saved_bytes(const gw_engine *engine, size_t *size) {
    const gw_request request = question();
    static hearing before;
    memset(&before, 0, sizeof before);
    gw_state *state = NULL;
    uint64_t id = 0;
    WORKS(gw_submit(engine, &request, &id, &error));
    poll_tokens(engine, id, AT, &before);
    WORKS(gw_state_save(engine, id, &state, &error));
    const void *data = gw_state_data(state, size);
    unsigned char *bytes = malloc(*size + 1);
    CHECK(bytes != NULL);
    memcpy(bytes, data, *size);
    bytes[*size] = 0;
    gw_state_free(&state);
    poll_tokens(engine, id, SIZE_MAX, &before);
    return bytes;
}

/* Every byte of what says what the others are, and of the rest some. */
static void changed(const gw_engine *engine, unsigned char *bytes, size_t size) {
    const size_t digest = size - 32;
    CHECK(memcmp(bytes, "GWSTATE1", 8) == 0);
    uint64_t header = 0;
    memcpy(&header, bytes + 8, sizeof header); /* On this machine numbers are little-endian. */
    const size_t tokens_end = 16 + (size_t)header + 4 * (PROMPT + AT);
    CHECK(tokens_end < digest);
    for (size_t at = 0; at < size; at += at < tokens_end || at + 1 >= digest ? 1 : at + 509 < digest ? 509 : digest - at) {
        bytes[at] ^= 1 << at % 8;
        refuses(engine, bytes, size, GW_ERR_FORMAT, "");
        bytes[at] ^= 1 << at % 8;
    }
    const size_t cuts[] = {0, 1, 7, 8, 15, 16, 17, 16 + (size_t)header, tokens_end, tokens_end + 1, digest, size - 1, size + 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) refuses(engine, bytes, cuts[i], GW_ERR_FORMAT, "");
}

/* What is not there where it goes on. */
static void elsewhere(const unsigned char *bytes, size_t size) {
    gw_engine *engine = open_small();
    refuses(engine, bytes, size, GW_ERR_FORMAT, "adapter");
    load(engine, "a", "lora"); /* Of that name, but another. */
    refuses(engine, bytes, size, GW_ERR_FORMAT, "adapter");
    gw_source *source = source_of("lora_all");
    WORKS(gw_adapter_replace(engine, "a", 1, source, 0, NULL, &error));
    gw_source_free(&source);
    source = lent(bytes, size);
    uint64_t id = 0;
    WORKS(gw_state_resume(engine, source, NULL, NULL, NULL, &id, &error));
    poll_all(engine, id);
    gw_source_free(&source);

    WORKS(gw_source_directory(&source, &error));
    FAILS(GW_ERR_INVALID_ARG, "state", gw_state_resume(engine, source, NULL, NULL, NULL, NULL, &error));
    gw_source_free(&source);
    source = source_of("no/such/file");
    FAILS(GW_ERR_NOT_FOUND, "no/such/file", gw_state_resume(engine, source, NULL, NULL, NULL, NULL, &error));
    gw_source_free(&source);
    gw_state *state = NULL;
    FAILS(GW_ERR_NOT_FOUND, "12345", gw_state_save(engine, 12345, &state, &error));
    FAILS(GW_ERR_NOT_FOUND, "", gw_state_save(engine, 0, &state, &error));
    CHECK(!state && gw_state_data(NULL, NULL) == NULL);
    gw_engine_close(&engine);

    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.threads = 1;
    options.kv_format = GW_KV_F32;
    engine = open_with(&options);
    load(engine, "a", "lora_all");
    refuses(engine, bytes, size, GW_ERR_FORMAT, "keys and values");
    gw_engine_close(&engine);
    options.kv_format = GW_KV_F16;
    options.kv_bytes = 2 * 3 * 2 * 16 * 2 * 64; /* One page of 64 positions. */
    engine = open_with(&options);
    load(engine, "a", "lora_all");
    refuses(engine, bytes, size, GW_ERR_BUDGET, "");
    gw_engine_close(&engine);
}

int main(int count, char **arguments) {
    begin(count, arguments);
    prompt(tokens, PROMPT, 4);
    gw_engine *engine = open_small(), *other = open_small();
    load(engine, "a", "lora_all");
    load(other, "of another name", "lora_all");
    load(other, "a", "lora");
    static hearing whole;
    const gw_request request = question();
    uint64_t id = 0;
    WORKS(gw_submit(engine, &request, &id, &error));
    poll_tokens(engine, id, SIZE_MAX, &whole);
    CHECK(whole.answer.count == LENGTH && whole.answer.finish == GW_FINISH_LENGTH);

    char path[64];
    snprintf(path, sizeof path, "/tmp/graftwork-states-%ld", (long)getpid());
    goes_on(engine, other, &whole);
    ways(engine, other, &whole, path);
    CHECK(unlink(path) == 0);
    size_t size = 0;
    unsigned char *bytes = saved_bytes(engine, &size);
    changed(other, bytes, size);
    elsewhere(bytes, size);
    free(bytes);

    gw_memory memory = GW_MEMORY_INIT;
    WORKS(gw_engine_memory(other, &memory, &error));
    EQUAL(0, memory.kv_used);
    gw_engine_close(&engine);
    gw_engine_close(&other);
    return 0;
}
