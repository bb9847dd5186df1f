/* One engine from its first call to its last, in everything it offers. Programs run it as it is, under valgrind, in
 * silence, and in a library that is loaded and unloaded. */
#ifndef LIFE_H
#define LIFE_H

#include "check.h"

/* What callbacks heard of one request. */
typedef struct {
    answer answer;
    int drops;
    size_t cancel_at; /* Ends the request at this many tokens, if not 0. */
    const gw_engine *engine;
} hearing;

static int32_t hear(void *user, const gw_event *event) {
    hearing *h = user;
    CHECK(h->drops == 0);
    /* Called with no lock held: the library can be called. */
    gw_memory memory = GW_MEMORY_INIT;
    if (h->engine) WORKS(gw_engine_memory(h->engine, &memory, &error));
    add_event(&h->answer, event);
    return h->cancel_at && h->answer.count >= h->cancel_at;
}

static void drop_hearing(void *user) {
    hearing *h = user;
    CHECK(++h->drops == 1);
}

typedef struct {
    atomic_int messages, parts, drops;
    int end_at; /* Ends loading at this many parts, if not 0. */
} watch;

static void watch_log(void *user, int32_t level, const char *message, size_t size) {
    CHECK(level >= GW_LOG_WARN && level <= GW_LOG_DEBUG && size > 0 && message[size] == 0);
    atomic_fetch_add(&((watch *)user)->messages, 1);
}

static int32_t watch_progress(void *user, uint64_t done, uint64_t all) {
    watch *w = user;
    CHECK(done <= all && all > 0);
    return atomic_fetch_add(&w->parts, 1) + 1 == w->end_at;
}

static void watch_drop(void *user) { atomic_fetch_add(&((watch *)user)->drops, 1); }

static gw_engine *life_open(watch *w) {
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT, same;
    WORKS(gw_engine_options_init(&same, sizeof same));
    CHECK(memcmp(&same, &options, sizeof same) == 0);
    options.threads = 2;
    options.kv_format = GW_KV_F32;
    options.kv_bytes = 8 << 20;
    options.log_level = GW_LOG_DEBUG;
    options.log = watch_log;
    options.log_user = w;
    options.log_drop = watch_drop;
    options.progress = watch_progress;
    options.progress_user = w;

    /* Ended by its progress, it takes nothing. */
    gw_source *source = source_of("model");
    gw_engine *engine = NULL;
    w->end_at = 1;
    FAILS(GW_ERR_CANCELLED, "", gw_engine_open(source, &options, &engine, &error));
    CHECK(!engine && w->drops == 0 && w->parts >= 1);
    w->end_at = 0;

    gw_memory plan = GW_MEMORY_INIT, memory = GW_MEMORY_INIT;
    WORKS(gw_engine_plan(source, &options, &plan, &error));
    WORKS(gw_engine_open(source, &options, &engine, &error));
    gw_source_free(&source);
    CHECK(w->parts > 1 && w->drops == 0);
    WORKS(gw_engine_memory(engine, &memory, &error));
    CHECK(plan.weights > 0 && plan.embedding == VOCAB * 128 * 4);
    EQUAL(plan.weights, memory.weights);
    EQUAL(plan.embedding, memory.embedding);
    /* In whole pages: 64 positions at most, of keys and values in 3 layers of 2 heads of 16 numbers. */
    CHECK(plan.kv_limit <= 8 << 20 && plan.kv_limit > (8 << 20) - 64 * 2 * 3 * 2 * 16 * 4);
    EQUAL(plan.kv_limit, memory.kv_limit);
    EQUAL(0, plan.kv + plan.adapters + memory.kv + memory.adapters + memory.kv_used);
    CHECK(plan.scratch > 0 && memory.scratch <= plan.scratch);

    gw_engine_info info = GW_ENGINE_INFO_INIT;
    WORKS(gw_engine_describe(engine, &info, &error));
    EQUAL(2, info.threads);
    EQUAL(VOCAB, info.vocab);
    EQUAL(512, info.context);
    EQUAL(3, info.layers);
    EQUAL(128, info.hidden);
    CHECK(info.has_tokenizer == 1 && info.has_chat == 1);
    CHECK(info.architecture_size == 5 && strcmp(info.architecture, "llama") == 0);
    CHECK(info.isa_size > 0 && info.isa[info.isa_size] == 0);
    return engine;
}

/* Names, generations and what they do to a request that runs. */
static void life_adapters(const gw_engine *engine) {
    uint32_t tokens[20];
    prompt(tokens, 20, 0);
    gw_request request = ask(tokens, 20, 12);
    const answer base = answer_to(engine, &request);

    gw_source *lora = source_of("lora"), *all = source_of("lora_all");
    uint64_t first = 0, second = 0, third = 0;
    WORKS(gw_adapter_load(engine, "b", 1, lora, &first, &error));
    WORKS(gw_adapter_load(engine, "a", GW_NUL, all, NULL, &error));
    FAILS(GW_ERR_CONFLICT, "\"b\"", gw_adapter_load(engine, "b", 1, all, NULL, &error));
    FAILS(GW_ERR_NOT_FOUND, "\"c\"", gw_adapter_replace(engine, "c", 1, all, 0, NULL, &error));

    gw_use use = {"b", 1, 1.0f, 0};
    request.adapters = &use;
    request.adapter_count = 1;
    const answer with_lora = answer_to(engine, &request);
    uint64_t id = 0;
    WORKS(gw_submit(engine, &request, &id, &error));

    /* Compare and swap. */
    FAILS(GW_ERR_CONFLICT, "\"b\"", gw_adapter_replace(engine, "b", 1, all, first + 1000, &second, &error));
    EQUAL(0, second);
    WORKS(gw_adapter_replace(engine, "b", 1, all, first, &second, &error));
    CHECK(second > first);
    FAILS(GW_ERR_CONFLICT, "\"b\"", gw_adapter_replace(engine, "b", 1, lora, first, NULL, &error));
    const answer with_all = answer_to(engine, &request);
    CHECK(!same(&base, &with_lora) && !same(&base, &with_all) && !same(&with_lora, &with_all));

    gw_adapters *list = NULL;
    gw_adapter_info info = GW_ADAPTER_INFO_INIT;
    WORKS(gw_adapter_list(engine, &list, &error));
    EQUAL(2, gw_adapters_count(list));
    WORKS(gw_adapters_get(list, 1, &info));
    CHECK(info.name_size == 1 && strcmp(info.name, "b") == 0 && strcmp(info.kind, "lora") == 0);
    CHECK(info.generation == second && info.sites == 21 && info.bytes > 0 && info.requests == 0);
    WORKS(gw_adapters_get(list, 0, &info));
    CHECK(strcmp(info.name, "a") == 0);
    EQUAL(GW_ERR_NOT_FOUND, gw_adapters_get(list, 2, &info));
    gw_adapters_free(&list);
    FAILS(GW_ERR_NOT_FOUND, "\"c\"", gw_adapter_describe(engine, "c", 1, &list, &error));

    /* What was submitted keeps what its name meant, even after the name is gone. */
    uint64_t late = 0;
    WORKS(gw_submit(engine, &request, &late, &error));
    WORKS(gw_step(engine, NULL, &error));
    WORKS(gw_adapter_unload(engine, "b", 1, &error));
    FAILS(GW_ERR_NOT_FOUND, "\"b\"", gw_adapter_unload(engine, "b", 1, &error));
    FAILS(GW_ERR_NOT_FOUND, "\"b\"", gw_submit(engine, &request, NULL, &error));
    gw_memory before = GW_MEMORY_INIT, after = GW_MEMORY_INIT;
    WORKS(gw_engine_memory(engine, &before, &error));
    answer kept = poll_all(engine, id);
    CHECK(same(&kept, &with_lora));
    kept = poll_all(engine, late);
    CHECK(same(&kept, &with_all));
    WORKS(gw_engine_memory(engine, &after, &error));
    CHECK(after.adapters > 0 && after.adapters < before.adapters);
    WORKS(gw_adapter_load(engine, "b", 1, lora, &third, &error));
    CHECK(third > second);
    gw_source_free(&lora);
    gw_source_free(&all);
}

/* All ways for an answer to come and to end. */
static void life_requests(const gw_engine *engine) {
    uint32_t tokens[30];
    prompt(tokens, 30, 3);
    gw_use uses[] = {{"a", 1, 0.5f, 0}, {"b", GW_NUL, 1.5f, 0}};
    gw_request request = ask(tokens, 30, 24), made;
    WORKS(gw_request_init(&made, sizeof made));
    const gw_request plain = GW_REQUEST_INIT;
    CHECK(memcmp(&made, &plain, sizeof made) == 0);
    request.adapters = uses;
    request.adapter_count = 2;
    const answer free_run = answer_to(engine, &request);
    EQUAL(24, free_run.count);
    EQUAL(GW_FINISH_LENGTH, free_run.finish);

    /* By callback; and ended by one. */
    static hearing h[2];
    memset(h, 0, sizeof h);
    h[1].cancel_at = 5;
    for (int i = 0; i < 2; i++) {
        h[i].engine = engine;
        request.on_event = hear;
        request.user = &h[i];
        request.drop = drop_hearing;
        WORKS(gw_submit(engine, &request, NULL, &error));
    }
    int32_t live = 1;
    while (live) WORKS(gw_step(engine, &live, &error));
    CHECK(same(&free_run, &h[0].answer) && h[0].drops == 1 && h[1].drops == 1);
    EQUAL(5, h[1].answer.count);
    EQUAL(GW_FINISH_CANCELLED, h[1].answer.finish);
    CHECK(memcmp(h[1].answer.tokens, free_run.tokens, 5 * sizeof *tokens) == 0);
    request.on_event = NULL;
    request.user = NULL;
    request.drop = NULL;

    /* Cancelled: before its first step, and within. */
    for (int steps = 0; steps < 3; steps++) {
        uint64_t id = 0;
        WORKS(gw_submit(engine, &request, &id, &error));
        for (int i = 0; i < steps; i++) WORKS(gw_step(engine, NULL, &error));
        WORKS(gw_cancel(engine, id, &error));
        const answer cut = poll_all(engine, id);
        EQUAL(GW_FINISH_CANCELLED, cut.finish);
        EQUAL(steps, cut.count);
        FAILS(GW_ERR_NOT_FOUND, "", gw_cancel(engine, id, &error));
        gw_event *event = NULL;
        FAILS(GW_ERR_NOT_FOUND, "", gw_poll(engine, id, 0, &event, &error));
    }

    /* At a token that is new, and at a text. */
    size_t at = 3;
    for (size_t i = 0; i < at; i++)
        if (free_run.tokens[i] == free_run.tokens[at]) at++, i = (size_t)-1;
    CHECK(at < free_run.count);
    request.stop_tokens = &free_run.tokens[at];
    request.stop_token_count = 1;
    answer cut = answer_to(engine, &request);
    EQUAL(GW_FINISH_STOP, cut.finish);
    EQUAL(at, cut.count);
    request.stop_token_count = 0;
    const char *letter = free_run.text + 3;
    while (*letter && !((*letter >= 'a' && *letter <= 'z') && (letter[1] >= 'a' && letter[1] <= 'z'))) letter++;
    CHECK(*letter);
    const gw_text stops[] = {{GW_TEXT("no such text")}, {letter, 2}};
    const char pair[] = {letter[0], letter[1], 0};
    request.stops = stops;
    request.stop_count = 2;
    cut = answer_to(engine, &request);
    EQUAL(GW_FINISH_STOP_TEXT, cut.finish);
    CHECK(cut.text_size == (size_t)(strstr(free_run.text, pair) - free_run.text));
    CHECK(memcmp(cut.text, free_run.text, cut.text_size) == 0);
}

/* What a token was chosen from. */
static void life_numbers(const gw_engine *engine) {
    uint32_t tokens[12];
    prompt(tokens, 10, 5);
    gw_use use = {"a", 1, 0.5f, 0};
    gw_request request = ask(tokens, 10, 2);
    request.flags |= GW_REQUEST_LOGPROBS | GW_REQUEST_LOGITS;
    request.top_logprobs = 3;
    request.adapters = &use;
    request.adapter_count = 1;
    uint64_t id = 0;
    WORKS(gw_submit(engine, &request, &id, &error));
    static float all[12 * VOCAB];
    for (size_t i = 0; i < 2; i++) {
        gw_event *event = NULL;
        WORKS(gw_poll(engine, 0, GW_FOREVER, &event, &error));
        CHECK(event && event->kind == GW_EVENT_TOKEN && event->request == id);
        CHECK(event->logits_count == VOCAB && event->top_count == 3);
        double sum = 0;
        for (size_t t = 0; t < VOCAB; t++) sum += exp(event->logits[t]);
        CHECK(event->top[0].token == event->token && event->top[0].logprob == event->logprob);
        for (size_t t = 0; t < 3; t++) {
            CHECK(fabs(event->logits[event->top[t].token] - log(sum) - event->top[t].logprob) < 1e-5);
            CHECK(t == 0 || event->top[t].logprob <= event->top[t - 1].logprob);
        }
        /* Reading and writing sum in different orders of f32: errors of some 1e-6 of logits of some units. */
        WORKS(gw_logits(engine, tokens, 10 + i, &use, 1, all, (10 + i) * VOCAB, &error));
        for (size_t t = 0; t < VOCAB; t++) CHECK(fabsf(all[(9 + i) * VOCAB + t] - event->logits[t]) < 1e-3f);
        tokens[10 + i] = event->token;
        gw_event_free(&event);
    }
    const answer end = poll_all(engine, id);
    CHECK(end.count == 0 && end.finish == GW_FINISH_LENGTH);
    FAILS(GW_ERR_INVALID_ARG, "capacity", gw_logits(engine, tokens, 10, NULL, 0, all, 10 * VOCAB - 1, &error));
}

/* Prompts of all kinds, and text again. */
static void life_text(const gw_engine *engine) {
    const gw_message messages[] = {{GW_TEXT("system"), GW_TEXT("be brief")}, {GW_TEXT("user"), GW_TEXT("</s> hi")}};
    gw_request requests[3] = {GW_REQUEST_INIT, GW_REQUEST_INIT, GW_REQUEST_INIT};
    requests[0].messages = messages;
    requests[0].message_count = 2;
    requests[1].chat_json =
        "{\"messages\": [{\"role\": \"system\", \"content\": \"be brief\"}, {\"role\": \"user\", \"content\": \"</s> hi\"}]}";
    requests[1].chat_json_size = GW_NUL;
    requests[2].text = "<s>system: be brief\nuser: </s> hi\n";
    requests[2].text_size = GW_NUL;
    uint32_t tokens[3][64];
    size_t counts[3] = {0, 0, 0};
    for (int i = 0; i < 3; i++) {
        size_t count = 0;
        WORKS(gw_prompt_tokens(engine, &requests[i], NULL, 0, &count, &error));
        CHECK(count > 10 && count <= 64);
        WORKS(gw_prompt_tokens(engine, &requests[i], tokens[i], count, &counts[i], &error));
        EQUAL(count, counts[i]);
        counts[i] = 0;
        FAILS(GW_ERR_INVALID_ARG, "capacity", gw_prompt_tokens(engine, &requests[i], tokens[i], 1, &counts[i], &error));
        EQUAL(count, counts[i]);
        /* However it was tokenized, it is the same text. */
        char text[128];
        size_t size = 0;
        WORKS(gw_detokenize(engine, tokens[i], count, text, sizeof text, &size, &error));
        CHECK(size == strlen(requests[2].text) && memcmp(text, requests[2].text, size) == 0);
        requests[i].max_tokens = 3;
        answer_to(engine, &requests[i]);
    }
    CHECK(counts[0] == counts[1] && memcmp(tokens[0], tokens[1], counts[0] * 4) == 0);
    /* Of what a user says, nothing is a special token; in a text it is. */
    CHECK(counts[2] < counts[0]);
}

/* All of it. */
static void life(void) {
    watch w;
    memset(&w, 0, sizeof w);
    gw_engine *engine = life_open(&w);
    life_adapters(engine);
    life_requests(engine);
    life_numbers(engine);
    life_text(engine);

    /* Closed with requests that run, that wait, and whose events nobody took. */
    uint32_t tokens[200];
    prompt(tokens, 200, 6);
    gw_request request = ask(tokens, 200, 50);
    static hearing h[40];
    memset(h, 0, sizeof h);
    for (int i = 0; i < 40; i++) {
        request.on_event = i % 2 ? hear : NULL;
        request.user = &h[i];
        request.drop = drop_hearing;
        WORKS(gw_submit(engine, &request, NULL, &error));
    }
    for (int i = 0; i < 3; i++) WORKS(gw_step(engine, NULL, &error));
    gw_engine_close(&engine);
    CHECK(!engine && w.drops == 1 && w.messages > 0);
    for (int i = 0; i < 40; i++) CHECK(h[i].drops == 1 && h[i].answer.finish == 0);
    gw_engine_close(&engine);
}

#endif
