/* Values without a meaning, and limits: each is refused by its name. */
#include "check.h"

static gw_engine *engine;
static uint32_t tokens[600];

static void engine_options(void) {
    static const struct {
        const char *word;
        gw_status status;
        gw_engine_options options;
    } refused[] = {
        {"flags", GW_ERR_INVALID_ARG, {.flags = 2}},
        {"flags", GW_ERR_INVALID_ARG, {.flags = 1u << 31}},
        {"device", GW_ERR_UNSUPPORTED, {.device = GW_DEVICE_GPU}},
        {"device", GW_ERR_INVALID_ARG, {.device = 2}},
        {"threads", GW_ERR_INVALID_ARG, {.threads = 100000}},
        {"kv_format", GW_ERR_INVALID_ARG, {.kv_format = 3}},
        {"log_level", GW_ERR_INVALID_ARG, {.log_level = 4}},
        {"log_level", GW_ERR_INVALID_ARG, {.log_level = -1}},
    };
    gw_source *source = source_of("model");
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        gw_engine_options options = refused[i].options;
        options.struct_size = sizeof options;
        gw_engine *none = NULL;
        gw_memory memory = GW_MEMORY_INIT;
        FAILS(refused[i].status, refused[i].word, gw_engine_open(source, &options, &none, &error));
        FAILS(refused[i].status, refused[i].word, gw_engine_plan(source, &options, &memory, &error));
        CHECK(!none && memory.weights == 0);
    }
    gw_source_free(&source);
}

static gw_request good(void) { return ask(tokens, 5, 3); }

#define REFUSED(status, word, ...)                                              \
    do {                                                                        \
        gw_request request = good();                                            \
        __VA_ARGS__;                                                            \
        uint64_t id = 0;                                                        \
        FAILS(status, word, gw_submit(engine, &request, &id, &error));          \
        EQUAL(0, id);                                                           \
    } while (0)

static void requests(void) {
    const gw_message message = {GW_TEXT("user"), GW_TEXT("hi")};
    const gw_message no_role = {NULL, 1, GW_TEXT("hi")}, no_text = {GW_TEXT("user"), GW_TEXT("\xff")};
    const gw_text no_stop = {"", 0};
    const uint32_t foreign[] = {5, VOCAB};
    gw_use use = {"none", GW_NUL, 1.0f, 0};
    const gw_logit_bias bias = {VOCAB, 1.0f}, no_bias = {1, NAN};

    REFUSED(GW_ERR_INVALID_ARG, "flags", request.flags = 8);
    REFUSED(GW_ERR_INVALID_ARG, "", request.tokens = NULL, request.token_count = 0);
    REFUSED(GW_ERR_INVALID_ARG, "", request.text = "two", request.text_size = 3);
    REFUSED(GW_ERR_INVALID_ARG, "", request.messages = &message, request.message_count = 1);
    REFUSED(GW_ERR_INVALID_ARG, "", request.chat_json = "{}", request.chat_json_size = 2);
    REFUSED(GW_ERR_INVALID_ARG, "", request.token_count = 0);
    REFUSED(GW_ERR_INVALID_ARG, "512", request.tokens = foreign, request.token_count = 2);
    REFUSED(GW_ERR_INVALID_ARG, "512", request.token_count = 512);
    REFUSED(GW_ERR_INVALID_ARG, "stop", request.stops = &no_stop, request.stop_count = 1);
    REFUSED(GW_ERR_INVALID_ARG, "", request.logit_bias = &bias, request.logit_bias_count = 1);
    REFUSED(GW_ERR_INVALID_ARG, "", request.logit_bias = &no_bias, request.logit_bias_count = 1);
    REFUSED(GW_ERR_INVALID_ARG, "temperature", request.temperature = -1);
    REFUSED(GW_ERR_INVALID_ARG, "temperature", request.temperature = NAN);
    REFUSED(GW_ERR_INVALID_ARG, "top_p", request.top_p = 1.5f);
    REFUSED(GW_ERR_INVALID_ARG, "min_p", request.min_p = -0.5f);
    REFUSED(GW_ERR_INVALID_ARG, "repetition_penalty", request.repetition_penalty = -1);
    REFUSED(GW_ERR_INVALID_ARG, "presence_penalty", request.presence_penalty = INFINITY);
    REFUSED(GW_ERR_INVALID_ARG, "frequency_penalty", request.frequency_penalty = NAN);
    REFUSED(GW_ERR_INVALID_ARG, "context", request.context = 2);
    REFUSED(GW_ERR_INVALID_ARG, "context", request.context = UINT32_MAX, request.keep = 4);
    REFUSED(GW_ERR_UNSUPPORTED, "grammar", request.grammar = "root ::= \"a\"", request.grammar_size = GW_NUL);
    REFUSED(GW_ERR_NOT_FOUND, "\"none\"", request.adapters = &use, request.adapter_count = 1);
    load(engine, "none", "lora");
    use.weight = NAN;
    REFUSED(GW_ERR_INVALID_ARG, "\"none\"", request.adapters = &use, request.adapter_count = 1);
    use.weight = 1;
    use.reserved = 1;
    REFUSED(GW_ERR_ABI, "reserved", request.adapters = &use, request.adapter_count = 1);
    use.reserved = 0;
    use.name = NULL;
    REFUSED(GW_ERR_INVALID_ARG, "name", request.adapters = &use, request.adapter_count = 1);
#define CHAT request.tokens = NULL, request.token_count = 0
    REFUSED(GW_ERR_INVALID_ARG, "role", CHAT, request.messages = &no_role, request.message_count = 1);
    REFUSED(GW_ERR_INVALID_ARG, "content", CHAT, request.messages = &no_text, request.message_count = 1);
    REFUSED(GW_ERR_INVALID_ARG, "chat", CHAT, request.chat_json = "{]", request.chat_json_size = 2);
    REFUSED(GW_ERR_INVALID_ARG, "chat", CHAT, request.chat_json = "[]", request.chat_json_size = 2);
}

/* Of what runs or waits. */
static void calls(void) {
    gw_event *event = NULL;
    int32_t live = 7;
    WORKS(gw_step(engine, &live, &error));
    EQUAL(0, live);
    WORKS(gw_poll(engine, 0, 0, &event, &error));
    CHECK(!event);
    WORKS(gw_poll(engine, 0, 20, &event, &error));
    CHECK(!event);
    FAILS(GW_ERR_NOT_FOUND, "12345", gw_poll(engine, 12345, 0, &event, &error));
    FAILS(GW_ERR_NOT_FOUND, "12345", gw_cancel(engine, 12345, &error));
    FAILS(GW_ERR_NOT_FOUND, "", gw_cancel(engine, 0, &error));

    /* With no time, what waits is taken and nothing computed. */
    gw_request request = good();
    uint64_t id = 0;
    WORKS(gw_submit(engine, &request, &id, &error));
    WORKS(gw_poll(engine, id, 0, &event, &error));
    CHECK(!event);
    WORKS(gw_step(engine, &live, &error));
    EQUAL(1, live);
    WORKS(gw_poll(engine, id, 0, &event, &error));
    CHECK(event && event->kind == GW_EVENT_TOKEN);
    gw_event_free(&event);
    WORKS(gw_poll(engine, id, 0, &event, &error));
    CHECK(!event);
    poll_all(engine, id);

    char text[4];
    size_t size = 0;
    tokens[0] = VOCAB;
    FAILS(GW_ERR_INVALID_ARG, "512", gw_detokenize(engine, tokens, 1, text, sizeof text, &size, &error));
    float logits[VOCAB];
    FAILS(GW_ERR_INVALID_ARG, "512", gw_logits(engine, tokens, 1, NULL, 0, logits, VOCAB, &error));
    prompt(tokens, 600, 0);
    FAILS(GW_ERR_INVALID_ARG, "", gw_logits(engine, tokens, 0, NULL, 0, logits, VOCAB, &error));
}

/* What a cache of one page cannot hold. */
static void budget(void) {
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    options.threads = 1;
    options.kv_bytes = 2 * 3 * 2 * 16 * 2 * 64;
    gw_engine *small = open_with(&options);
    gw_request request = ask(tokens, 300, 100);
    FAILS(GW_ERR_BUDGET, "", gw_submit(small, &request, NULL, &error));
    gw_engine_close(&small);
}

static void names(void) {
    for (gw_status status = 0; status <= GW_ERR_CONFLICT; status++) {
        CHECK(strncmp(gw_status_name(status), status ? "GW_ERR_" : "GW_OK", 5) == 0);
        for (gw_status other = 0; other < status; other++)
            CHECK(strcmp(gw_status_name(status), gw_status_name(other)) != 0);
    }
    CHECK(strcmp(gw_status_name(GW_ERR_CONFLICT), "GW_ERR_CONFLICT") == 0);
    CHECK(strcmp(gw_status_name(15), "GW_ERR_UNKNOWN") == 0 && strcmp(gw_status_name(-1), "GW_ERR_UNKNOWN") == 0);
    const char *const has[] = {"lora", "q4_1", "gguf", "safetensors", "fd", "cpu", "state", "budget"};
    const char *const has_not[] = {"gpu", "grammar", "", "LORA", "no such thing"};
    for (size_t i = 0; i < sizeof has / sizeof *has; i++) EQUAL(1, gw_has_feature(has[i], GW_NUL));
    for (size_t i = 0; i < sizeof has_not / sizeof *has_not; i++) EQUAL(0, gw_has_feature(has_not[i], GW_NUL));
    EQUAL(1, gw_has_feature("loraxyz", 4));
    EQUAL(GW_OK, gw_error_code(NULL));
    CHECK(gw_error_message(NULL, NULL) == NULL && gw_error_detail(NULL, NULL) == NULL);
}

int main(int count, char **arguments) {
    begin(count, arguments);
    names();
    prompt(tokens, 600, 0);
    engine_options();
    engine = open_small();
    requests();
    calls();
    budget();
    /* None of that left anything behind. */
    gw_memory memory = GW_MEMORY_INIT;
    WORKS(gw_engine_memory(engine, &memory, &error));
    EQUAL(0, memory.kv_used);
    gw_request request = good();
    const answer found = answer_to(engine, &request);
    EQUAL(3, found.count);
    gw_engine_close(&engine);
    return 0;
}
