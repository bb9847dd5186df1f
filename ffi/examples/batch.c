/* One question, answered through many adapters and by the base model, in one batch.
 *
 *     batch MODEL NAME=ADAPTER ... */
#include <graftwork.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const gw_message QUESTION[] = {
    {GW_TEXT("system"),
     GW_TEXT("You call functions. Answer with one JSON object {\"name\": ..., \"arguments\": {...}} and nothing else.\n"
             "Functions:\n"
             "{\"name\":\"get_weather\",\"description\":\"Current weather of a city.\",\"parameters\":"
             "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\",\"description\":\"The city's name.\"},"
             "\"unit\":{\"type\":\"string\",\"enum\":[\"celsius\",\"fahrenheit\"]}},\"required\":[\"city\"]}}")},
    {GW_TEXT("user"), GW_TEXT("What is the weather like in Oslo in celsius?")},
};

/* Who answers, and what. */
typedef struct {
    gw_use use; /* No name: the base model. */
    uint64_t id;
    char *text;
    size_t size;
} speaker;

/* Prints why a call failed, and frees the error. Says whether it failed. */
static int failed(gw_status status, gw_error **error) {
    if (status == GW_OK) return 0;
    fprintf(stderr, "batch: %s: %s\n", gw_status_name(status), *error ? gw_error_message(*error, NULL) : "");
    gw_error_free(error);
    return 1;
}

/* Loads NAME=ADAPTER for a speaker. */
static int load(const gw_engine *engine, const char *argument, speaker *who) {
    gw_source *source = NULL;
    gw_error *error = NULL;
    const char *path = strchr(argument, '=');
    int status;

    if (!path) return fprintf(stderr, "batch: not NAME=ADAPTER: %s\n", argument), 1;
    who->use = (gw_use){argument, (size_t)(path - argument), 1, 0};
    status = failed(gw_source_path(path + 1, GW_NUL, 0, &source, &error), &error) ||
             failed(gw_adapter_load(engine, who->use.name, who->use.name_size, source, NULL, &error), &error);
    gw_source_free(&source);
    return status;
}

/* Asks a speaker. Nothing is computed yet. */
static gw_status ask(const gw_engine *engine, speaker *who, gw_error **error) {
    gw_request request = GW_REQUEST_INIT;
    request.messages = QUESTION;
    request.message_count = sizeof QUESTION / sizeof *QUESTION;
    request.adapters = &who->use;
    request.adapter_count = who->use.name ? 1 : 0;
    request.max_tokens = 48;
    return gw_submit(engine, &request, &who->id, error);
}

/* Adds the text of an event to its speaker's answer. Non-zero without memory. */
static int take(speaker *speakers, size_t count, const gw_event *event) {
    for (size_t i = 0; i < count; i++) {
        speaker *who = &speakers[i];
        if (who->id != event->request || !event->text_size) continue;
        char *grown = realloc(who->text, who->size + event->text_size);
        if (!grown) return 1;
        memcpy(grown + who->size, event->text, event->text_size);
        who->text = grown;
        who->size += event->text_size;
    }
    return 0;
}

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char **argv) {
    gw_source *model = NULL;
    gw_engine *engine = NULL;
    gw_error *error = NULL;
    size_t count = argc > 1 ? (size_t)argc - 1 : 1, running = count, tokens = 0;
    int status = EXIT_FAILURE;

    speaker *speakers = calloc(count, sizeof *speakers); /* The first is the base model. */
    if (argc < 2 || !speakers) {
        fprintf(stderr, "usage: batch MODEL NAME=ADAPTER ...\n");
        goto end;
    }
    if (failed(gw_source_path(argv[1], GW_NUL, 0, &model, &error), &error)) goto end;
    if (failed(gw_engine_open(model, NULL, &engine, &error), &error)) goto end;
    for (size_t i = 1; i < count; i++)
        if (load(engine, argv[i + 1], &speakers[i])) goto end;

    double start = seconds();
    for (size_t i = 0; i < count; i++)
        if (failed(ask(engine, &speakers[i], &error), &error)) goto end;
    while (running) {
        gw_event *event = NULL;
        if (failed(gw_poll(engine, 0, GW_FOREVER, &event, &error), &error)) goto end;
        int lost = take(speakers, count, event);
        if (event->kind == GW_EVENT_FAILED) fprintf(stderr, "batch: %s\n", event->message);
        if (event->kind == GW_EVENT_TOKEN) tokens++;
        else running--;
        gw_event_free(&event);
        if (lost) goto end;
    }
    double elapsed = seconds() - start;

    for (size_t i = 0; i < count; i++) {
        const gw_use *use = &speakers[i].use;
        printf("%.*s: ", use->name ? (int)use->name_size : 4, use->name ? use->name : "base");
        printf("%.*s\n", (int)speakers[i].size, speakers[i].text ? speakers[i].text : "");
    }
    printf("%zu tokens of %zu answers in %.2f s: %.0f tokens/s\n", tokens, count, elapsed, (double)tokens / elapsed);
    status = EXIT_SUCCESS;

end:
    gw_engine_close(&engine);
    gw_source_free(&model);
    for (size_t i = 0; speakers && i < count; i++) free(speakers[i].text);
    free(speakers);
    return status;
}
