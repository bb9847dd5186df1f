/* Swaps an adapter under a running answer.
 *
 *     swap MODEL ADAPTER REPLACEMENT
 *
 * An adapter called "assistant" begins to answer. In the middle of its answer, the name is given to another adapter.
 * The running request keeps the old one to its end; the same question, asked again, is answered by the new one. */
#include <graftwork.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const gw_message QUESTION[] = {
    {GW_TEXT("system"),
     GW_TEXT("You call functions. Answer with one JSON object {\"name\": ..., \"arguments\": {...}} and nothing else.\n"
             "Functions:\n"
             "{\"name\":\"get_weather\",\"description\":\"Current weather of a city.\",\"parameters\":"
             "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\",\"description\":\"The city's name.\"},"
             "\"unit\":{\"type\":\"string\",\"enum\":[\"celsius\",\"fahrenheit\"]}},\"required\":[\"city\"]}}")},
    {GW_TEXT("user"), GW_TEXT("What is the weather like in Oslo in celsius?")},
};
static const gw_use ASSISTANT = {GW_TEXT("assistant"), 1, 0};

/* Prints why a call failed, and frees the error. Says whether it failed. */
static int failed(gw_status status, gw_error **error) {
    if (status == GW_OK) return 0;
    fprintf(stderr, "swap: %s: %s\n", gw_status_name(status), *error ? gw_error_message(*error, NULL) : "");
    gw_error_free(error);
    return 1;
}

/* Asks the question. */
static gw_status ask(const gw_engine *engine, uint64_t *id, gw_error **error) {
    gw_request request = GW_REQUEST_INIT;
    request.messages = QUESTION;
    request.message_count = sizeof QUESTION / sizeof *QUESTION;
    request.adapters = &ASSISTANT;
    request.adapter_count = 1;
    request.max_tokens = 48;
    return gw_submit(engine, &request, id, error);
}

/* Prints what comes of an answer, at most `tokens` of it. Sets `done` at its end. */
static gw_status listen(const gw_engine *engine, uint64_t id, int tokens, int *done, gw_error **error) {
    for (*done = 0; !*done && tokens > 0; tokens--) {
        gw_event *event = NULL;
        gw_status status = gw_poll(engine, id, GW_FOREVER, &event, error);
        if (status != GW_OK) return status;
        fwrite(event->text, 1, event->text_size, stdout);
        if (event->kind == GW_EVENT_FAILED) printf("failed: %s", event->message);
        *done = event->kind != GW_EVENT_TOKEN;
        gw_event_free(&event);
    }
    return GW_OK;
}

int main(int argc, char **argv) {
    gw_source *model = NULL, *old = NULL, *new = NULL;
    gw_engine *engine = NULL;
    gw_error *error = NULL;
    uint64_t before = 0, after = 0, first = 0, second = 0;
    int done = 0, status = EXIT_FAILURE;

    if (argc != 4) {
        fprintf(stderr, "usage: swap MODEL ADAPTER REPLACEMENT\n");
        return EXIT_FAILURE;
    }
    if (failed(gw_source_path(argv[1], GW_NUL, 0, &model, &error), &error)) goto end;
    if (failed(gw_source_path(argv[2], GW_NUL, 0, &old, &error), &error)) goto end;
    if (failed(gw_source_path(argv[3], GW_NUL, 0, &new, &error), &error)) goto end;
    if (failed(gw_engine_open(model, NULL, &engine, &error), &error)) goto end;
    if (failed(gw_adapter_load(engine, ASSISTANT.name, ASSISTANT.name_size, old, &first, &error), &error)) goto end;

    printf("before the swap: ");
    if (failed(ask(engine, &before, &error), &error)) goto end;
    if (failed(listen(engine, before, 5, &done, &error), &error)) goto end;

    printf(" [swap] ");
    if (failed(gw_adapter_replace(engine, ASSISTANT.name, ASSISTANT.name_size, new, first, &second, &error), &error))
        goto end;
    if (failed(ask(engine, &after, &error), &error)) goto end;
    if (!done && failed(listen(engine, before, INT32_MAX, &done, &error), &error)) goto end;
    printf("\nafter the swap: ");
    if (failed(listen(engine, after, INT32_MAX, &done, &error), &error)) goto end;

    /* Whoever still believes in the first generation does not undo what somebody else did since. */
    if (gw_adapter_replace(engine, ASSISTANT.name, ASSISTANT.name_size, old, first, NULL, &error) == GW_ERR_CONFLICT) {
        printf("\na second swap from the first generation: %s\n", gw_error_message(error, NULL));
        status = EXIT_SUCCESS;
    }
    gw_error_free(&error);

end:
    gw_engine_close(&engine);
    gw_source_free(&model);
    gw_source_free(&old);
    gw_source_free(&new);
    return status;
}
