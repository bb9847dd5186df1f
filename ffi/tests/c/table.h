/* What the calls of the generated table work with: everything that any function could want, made anew for each case. */
#ifndef TABLE_H
#define TABLE_H

#include "check.h"

/* A struct as a caller knows it that was compiled against a newer header. */
#define NEWER(type, name)        \
    struct {                     \
        type known;              \
        unsigned char newer[32]; \
    } name

typedef struct {
    gw_engine *engine;
    gw_source *model, *lora, *file, *directory, *saved;
    gw_adapters *list;
    gw_event *event;
    gw_state *state;
    gw_error *failure;
    uint64_t running;
    int fd, drops;
    char path[4096], target[4096]; /* To read from, and to write to. */
    uint32_t tokens[8];
    gw_use uses[1];
    NEWER(gw_request, request);
    NEWER(gw_engine_options, options);
    NEWER(gw_reader, reader);
    NEWER(gw_memory, memory);
    NEWER(gw_engine_info, info);
    NEWER(gw_adapter_info, adapter);
    /* What calls make: untouched by a call that is refused. */
    struct {
        gw_source *source;
        gw_engine *engine;
        gw_adapters *list;
        gw_event *event;
        gw_state *state;
        uint64_t id, generation;
        size_t size;
        int32_t live;
        uint32_t tokens[8];
        char text[64];
        float logits[3 * VOCAB];
    } made;
} fixture;

static const char bytes[] = "{\"peft_type\": \"LORA\"}";

static inline int32_t read_bytes(void *user, uint64_t offset, void *buffer, size_t size) {
    (void)user;
    CHECK(offset <= sizeof bytes && size <= sizeof bytes - offset);
    memcpy(buffer, bytes + offset, size);
    return 0;
}

static inline void dropped(void *user) {
    if (user) ++*(int *)user;
}

static inline int32_t heard(void *user, const gw_event *event) {
    (void)user, (void)event;
    return 0;
}

static inline void defaults(fixture *f) {
    const gw_request request = GW_REQUEST_INIT;
    const gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    const gw_reader reader = GW_READER_INIT;
    const gw_memory memory = GW_MEMORY_INIT;
    const gw_engine_info info = GW_ENGINE_INFO_INIT;
    const gw_adapter_info adapter = GW_ADAPTER_INFO_INIT;
    f->request.known = request;
    f->request.known.tokens = f->tokens;
    f->request.known.token_count = 3;
    f->request.known.max_tokens = 4;
    f->options.known = options;
    f->options.known.threads = 1;
    f->reader.known = reader;
    f->reader.known.length = sizeof bytes;
    f->reader.known.read = read_bytes;
    f->memory.known = memory;
    f->info.known = info;
    f->adapter.known = adapter;
}

static inline void set_up(fixture *f) {
    memset(f, 0, sizeof *f);
    prompt(f->tokens, 8, 1);
    defaults(f);
    path_of("lora/adapter_config.json", f->path);
    f->fd = open(f->path, O_RDONLY);
    CHECK(f->fd >= 0);
    f->uses[0].name = "lora";
    f->uses[0].name_size = 4;
    f->uses[0].weight = 0.5f;

    f->engine = open_with(&f->options.known);
    f->model = source_of("model");
    f->lora = source_of("lora");
    WORKS(gw_source_memory(bytes, sizeof bytes, GW_SOURCE_COPY, NULL, NULL, &f->file, &error));
    WORKS(gw_source_directory(&f->directory, &error));
    load(f->engine, "lora", "lora");
    WORKS(gw_adapter_list(f->engine, &f->list, &error));
    WORKS(gw_submit(f->engine, &f->request.known, &f->running, &error));
    WORKS(gw_poll(f->engine, f->running, GW_FOREVER, &f->event, &error));
    CHECK(f->event && f->event->kind == GW_EVENT_TOKEN);
    size_t size = 0;
    WORKS(gw_state_save(f->engine, f->running, &f->state, &error));
    const void *const state = gw_state_data(f->state, &size);
    WORKS(gw_source_memory(state, size, GW_SOURCE_COPY, NULL, NULL, &f->saved, &error));
    snprintf(f->target, sizeof f->target, "/tmp/graftwork-abi-%ld", (long)getpid());
    EQUAL(GW_ERR_NOT_FOUND, gw_adapter_unload(f->engine, "none", GW_NUL, &f->failure));
    CHECK(f->failure);
}

/* An engine is whole if it answers. */
static inline void check_whole(const gw_engine *engine) {
    uint32_t tokens[3];
    prompt(tokens, 3, 2);
    gw_request request = ask(tokens, 3, 2);
    const answer found = answer_to(engine, &request);
    EQUAL(2, found.count);
    EQUAL(GW_FINISH_LENGTH, found.finish);
}

static inline void tear_down(fixture *f) {
    gw_event_free(&f->event);
    gw_event_free(&f->made.event);
    gw_state_free(&f->state);
    gw_state_free(&f->made.state);
    gw_adapters_free(&f->list);
    gw_adapters_free(&f->made.list);
    gw_error_free(&f->failure);
    gw_source_free(&f->model);
    gw_source_free(&f->lora);
    gw_source_free(&f->file);
    gw_source_free(&f->directory);
    gw_source_free(&f->saved);
    gw_source_free(&f->made.source);
    gw_engine_close(&f->engine);
    gw_engine_close(&f->made.engine);
    close(f->fd);
    unlink(f->target);
}

/* Whether a refused call did nothing. */
static inline int is_untouched(const fixture *f) {
    const unsigned char *made = (const unsigned char *)&f->made;
    for (size_t i = 0; i < sizeof f->made; i++)
        if (made[i]) return 0;
    return 1;
}

#define check_untouched(f) CHECK(is_untouched(f))

#endif
