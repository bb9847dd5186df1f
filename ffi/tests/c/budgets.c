/* Limits of memory: what is refused, adapters that make room for each other, pinned ones, sources that changed; contexts that shift. */
#include "check.h"

enum { PROMPT = 20, LENGTH = 8, NAMES = 5 };

static uint32_t tokens[PROMPT];
static const char *const names[NAMES] = {"0", "1", "2", "3", "4"};
static const char *const files[NAMES] = {"lora", "lora_all", "lora_bias", "lora_rslora", "lora_all"};
static answer expected[NAMES];
static uint64_t largest; /* Bytes of an adapter. */

static gw_adapter_info info_of(const gw_engine *engine, const char *name) {
    gw_adapters *list = NULL;
    gw_adapter_info info = GW_ADAPTER_INFO_INIT;
    WORKS(gw_adapter_describe(engine, name, GW_NUL, &list, &error));
    EQUAL(GW_OK, gw_adapters_get(list, 0, &info));
    gw_adapters_free(&list);
    info.name = info.kind = NULL; /* They lived as long as the list. */
    return info;
}

static gw_memory memory_of(const gw_engine *engine) {
    gw_memory memory = GW_MEMORY_INIT;
    WORKS(gw_engine_memory(engine, &memory, &error));
    if (memory.adapters_limit) CHECK(memory.adapters <= memory.adapters_limit);
    return memory;
}

static gw_request question(gw_use *use, const char *name) {
    gw_request request = ask(tokens, PROMPT, LENGTH);
    *use = (gw_use){name, GW_NUL, 1, 0};
    request.adapters = use;
    request.adapter_count = 1;
    return request;
}

static gw_engine *open_bounded(uint64_t adapter_bytes) {
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.threads = 2;
    options.adapter_bytes = adapter_bytes;
    return open_with(&options);
}

/* Without a limit: what is expected, and how large adapters are. */
static void without(void) {
    gw_engine *engine = open_small();
    for (int i = 0; i < NAMES; i++) {
        gw_use use;
        const uint64_t before = memory_of(engine).adapters;
        load(engine, names[i], files[i]);
        const gw_adapter_info info = info_of(engine, names[i]);
        EQUAL(GW_ADAPTER_RESIDENT, info.state);
        EQUAL(1, info.loads);
        EQUAL(memory_of(engine).adapters - before, info.bytes);
        if (info.bytes > largest) largest = info.bytes;
        const gw_request request = question(&use, names[i]);
        expected[i] = answer_to(engine, &request);
    }
    EQUAL(0, memory_of(engine).adapters_limit);
    gw_engine_close(&engine);
}

static void refused(void) {
    gw_source *source = source_of("model");
    gw_memory plan = GW_MEMORY_INIT;
    gw_engine *engine = NULL;
    WORKS(gw_engine_plan(source, NULL, &plan, &error));
    for (int i = 0; i < 4; i++) {
        gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
        options.threads = 1;
        options.weight_bytes = plan.weights + plan.embedding - (i == 0);
        options.scratch_bytes = i == 1 ? 1000 : 0;
        if (i == 2) {
            /* Compiled against a header without these fields: what lies there is not theirs. */
            options.struct_size = offsetof(gw_engine_options, weight_bytes);
            options.weight_bytes = options.adapter_bytes = options.scratch_bytes = 1;
        }
        if (i >= 2) {
            WORKS(gw_engine_open(source, &options, &engine, &error));
            EQUAL(0, memory_of(engine).adapters_limit);
            gw_engine_close(&engine);
        } else {
            const gw_status status = gw_engine_open(source, &options, &engine, &error);
            EQUAL(GW_ERR_BUDGET, status);
            CHECK(!engine && strcmp(gw_error_detail(error, NULL), i ? "scratch_bytes" : "weight_bytes") == 0);
            gw_error_free(&error);
        }
    }
    gw_source_free(&source);
    engine = open_bounded(1);
    source = source_of("lora");
    FAILS(GW_ERR_BUDGET, "adapter_bytes", gw_adapter_load(engine, "a", 1, source, NULL, &error));
    gw_source_free(&source);
    EQUAL(0, memory_of(engine).adapters);
    gw_engine_close(&engine);
}

/* Room for two of five: all answer, at once and one after the other. */
static void make_room(void) {
    gw_engine *engine = open_bounded(2 * largest);
    uint64_t generations[NAMES], ids[3 * NAMES], loads = 0;
    EQUAL(2 * largest, memory_of(engine).adapters_limit);
    for (int i = 0; i < NAMES; i++) generations[i] = load(engine, names[i], files[i]), memory_of(engine);
    gw_use use;
    for (int i = 0; i < 3 * NAMES; i++) {
        const gw_request request = question(&use, names[i % NAMES]);
        WORKS(gw_submit(engine, &request, &ids[i], &error));
    }
    for (int32_t live = 1; live;) {
        WORKS(gw_step(engine, &live, &error));
        memory_of(engine);
    }
    for (int i = 0; i < 3 * NAMES; i++) {
        const answer found = poll_all(engine, ids[i]);
        CHECK(same(&expected[i % NAMES], &found));
    }
    for (int i = 0; i < NAMES; i++) {
        const gw_adapter_info info = info_of(engine, names[i]);
        EQUAL(generations[i], info.generation);
        EQUAL(0, info.requests);
        loads += info.loads;
    }
    CHECK(loads > NAMES);

    /* A pinned one stays, whoever comes. */
    WORKS(gw_adapter_pin(engine, "1", 1, 1, &error));
    EQUAL(GW_ADAPTER_RESIDENT | GW_ADAPTER_PINNED, info_of(engine, "1").state);
    const uint64_t before = info_of(engine, "1").loads;
    for (int i = 0; i < 2 * NAMES; i++) {
        const gw_request request = question(&use, names[i % NAMES]);
        const answer found = answer_to(engine, &request);
        CHECK(same(&expected[i % NAMES], &found));
        memory_of(engine);
    }
    EQUAL(before, info_of(engine, "1").loads);
    FAILS(GW_ERR_NOT_FOUND, "none", gw_adapter_pin(engine, "none", 4, 1, &error));

    /* Where all room is pinned there is none for another. */
    WORKS(gw_adapter_pin(engine, "4", 1, 1, &error));
    const gw_status status = gw_adapter_pin(engine, "1", 1, -1, &error); /* Again: nothing changes. */
    EQUAL(GW_OK, status);
    gw_source *source = source_of("lora_all");
    FAILS(GW_ERR_BUDGET, "adapter_bytes", gw_adapter_load(engine, "new", 3, source, NULL, &error));
    gw_request request = question(&use, "3");
    FAILS(GW_ERR_BUDGET, "adapter_bytes", gw_submit(engine, &request, NULL, &error));
    WORKS(gw_adapter_pin(engine, "4", 1, 0, &error));
    /* Where it is in use there is none for the moment, and a request waits. */
    request = question(&use, "4");
    WORKS(gw_submit(engine, &request, &ids[0], &error));
    WORKS(gw_step(engine, NULL, &error));
    FAILS(GW_ERR_BUSY, "adapter_bytes", gw_adapter_load(engine, "new", 3, source, NULL, &error));
    FAILS(GW_ERR_BUSY, "adapter_bytes", gw_adapter_pin(engine, "3", 1, 1, &error));
    request = question(&use, "3");
    WORKS(gw_submit(engine, &request, &ids[1], &error));
    EQUAL(1, info_of(engine, "3").requests);
    EQUAL(0, info_of(engine, "3").state);
    answer found = poll_all(engine, ids[1]);
    CHECK(same(&expected[3], &found));
    found = poll_all(engine, ids[0]);
    CHECK(same(&expected[4], &found));
    /* A name that is given to another adapter is not pinned any more. */
    WORKS(gw_adapter_replace(engine, "1", 1, source, 0, NULL, &error));
    CHECK((info_of(engine, "1").state & GW_ADAPTER_PINNED) == 0);
    gw_source_free(&source);
    gw_engine_close(&engine);
}

static void copy(const char *from, const char *to) {
    char path[4096], bytes[4096], partial[128];
    path_of(from, path);
    snprintf(partial, sizeof partial, "%s.new", to);
    FILE *in = fopen(path, "rb"), *out = fopen(partial, "wb");
    CHECK(in && out);
    for (size_t got; (got = fread(bytes, 1, sizeof bytes, in)) > 0;) CHECK(fwrite(bytes, 1, got, out) == got);
    CHECK(fclose(in) == 0 && fclose(out) == 0 && rename(partial, to) == 0);
}

/* An adapter that left memory and whose file then changed does not come back as another. */
static void changed(void) {
    char folder_name[64] = "/tmp/graftwork-budgets-XXXXXX", config[96], weights[96];
    CHECK(mkdtemp(folder_name));
    snprintf(config, sizeof config, "%s/adapter_config.json", folder_name);
    snprintf(weights, sizeof weights, "%s/adapter_model.safetensors", folder_name);
    copy("lora_all/adapter_config.json", config);
    copy("lora_all/adapter_model.safetensors", weights);
    gw_engine *engine = open_bounded(largest);
    gw_source *source = NULL;
    WORKS(gw_source_path(folder_name, GW_NUL, 0, &source, &error));
    WORKS(gw_adapter_load(engine, "x", 1, source, NULL, &error));
    load(engine, "other", "lora_all");
    EQUAL(0, info_of(engine, "x").state);
    gw_use use;
    gw_request request = question(&use, "x");
    answer found = answer_to(engine, &request);
    CHECK(same(&expected[1], &found));
    WORKS(gw_adapter_pin(engine, "other", GW_NUL, 1, &error));
    WORKS(gw_adapter_pin(engine, "other", GW_NUL, 0, &error));

    copy("lora_rslora/adapter_config.json", config);
    copy("lora_rslora/adapter_model.safetensors", weights);
    uint64_t id = 0;
    gw_status status = gw_submit(engine, &request, &id, NULL);
    if (status == GW_OK) {
        gw_event *event = NULL;
        WORKS(gw_poll(engine, id, GW_FOREVER, &event, &error));
        EQUAL(GW_EVENT_FAILED, event->kind);
        CHECK(strstr(event->message, "\"x\""));
        status = event->status;
        gw_event_free(&event);
    }
    EQUAL(GW_ERR_CONFLICT, status);
    /* Replaced, it answers as what it is now. */
    WORKS(gw_adapter_replace(engine, "x", 1, source, 0, NULL, &error));
    found = answer_to(engine, &request);
    CHECK(same(&expected[3], &found));
    gw_source_free(&source);
    gw_engine_close(&engine);
    CHECK(unlink(config) == 0 && unlink(weights) == 0 && rmdir(folder_name) == 0);
}

/* An answer of more tokens than the context has positions. */
static int32_t count_tokens(void *user, const gw_event *event) {
    uint64_t *counts = user;
    counts[0] += event->kind == GW_EVENT_TOKEN;
    if (event->kind != GW_EVENT_TOKEN) counts[1] = event->kind == GW_EVENT_FINISHED ? (uint64_t)event->finish : 99;
    return 0;
}

static void contexts(void) {
    gw_engine *engine = open_small();
    for (uint32_t context = 0; context < 2; context++) {
        uint64_t counts[2] = {0, 0};
        gw_request request = ask(tokens, PROMPT, 700);
        request.context = context ? GW_CONTEXT_SHIFT : GW_CONTEXT_STOP;
        request.keep = context ? 4 : 0;
        request.on_event = count_tokens;
        request.user = counts;
        WORKS(gw_submit(engine, &request, NULL, &error));
        for (int32_t live = 1; live;) WORKS(gw_step(engine, &live, &error));
        EQUAL(context ? 700 : 512 - PROMPT, counts[0]);
        EQUAL(GW_FINISH_LENGTH, counts[1]);
    }
    gw_engine_close(&engine);
}

int main(int count, char **arguments) {
    begin(count, arguments);
    prompt(tokens, PROMPT, 8);
    without();
    refused();
    make_room();
    changed();
    contexts();
    return 0;
}
