/* A conversation with a model, streamed.
 *
 *     chat MODEL PROMPT     answers one prompt
 *     chat MODEL            answers the lines of stdin, and remembers what was said */
#include <graftwork.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What was said. Contents belong to it; roles are literals. */
typedef struct {
    gw_message *messages;
    size_t count;
} conversation;

/* Prints why a call failed, and frees the error. Says whether it failed. */
static int failed(gw_status status, gw_error **error) {
    if (status == GW_OK) return 0;
    fprintf(stderr, "chat: %s: %s\n", gw_status_name(status), *error ? gw_error_message(*error, NULL) : "");
    gw_error_free(error);
    return 1;
}

/* Adds an empty message. NULL without memory. */
static gw_message *add(conversation *chat, const char *role) {
    gw_message *grown = realloc(chat->messages, (chat->count + 1) * sizeof *grown);
    if (!grown) return NULL;
    chat->messages = grown;
    grown[chat->count] = (gw_message){role, GW_NUL, NULL, 0};
    return &grown[chat->count++];
}

/* Adds to the content of a message. Non-zero without memory. */
static int append(gw_message *message, const char *text, size_t size) {
    char *grown = realloc((char *)message->content, message->content_size + size + 1);
    if (!grown) return 1;
    if (size) memcpy(grown + message->content_size, text, size);
    message->content = grown;
    message->content_size += size;
    return 0;
}

/* Hears each piece of an answer as soon as it is there. Non-zero would end the answer. */
static int32_t hear(void *user, const gw_event *event) {
    fwrite(event->text, 1, event->text_size, stdout);
    fflush(stdout);
    if (event->kind == GW_EVENT_FAILED) fprintf(stderr, "chat: %.*s\n", (int)event->message_size, event->message);
    return append(user, event->text, event->text_size);
}

/* Answers the conversation, and adds the answer to it. */
static int answer(const gw_engine *engine, conversation *chat) {
    gw_error *error = NULL;
    gw_request request = GW_REQUEST_INIT;
    int32_t live = 1;

    gw_message *reply = add(chat, "assistant");
    if (!reply) return 1;
    request.messages = chat->messages;
    request.message_count = chat->count - 1;
    request.max_tokens = 48;
    request.on_event = hear;
    request.user = reply;
    if (failed(gw_submit(engine, &request, NULL, &error), &error)) return 1;
    while (live)
        if (failed(gw_step(engine, &live, &error), &error)) return 1;
    puts("");
    return 0;
}

/* Says something, and lets the model answer. */
static int say(const gw_engine *engine, conversation *chat, const char *text, size_t size) {
    gw_message *question = add(chat, "user");
    return !question || append(question, text, size) || answer(engine, chat);
}

int main(int argc, char **argv) {
    gw_source *model = NULL;
    gw_engine *engine = NULL;
    gw_error *error = NULL;
    conversation chat = {NULL, 0};
    char line[4096];
    int status = EXIT_FAILURE;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: chat MODEL [PROMPT]\n");
        return EXIT_FAILURE;
    }
    if (failed(gw_source_path(argv[1], GW_NUL, 0, &model, &error), &error)) goto end;
    if (failed(gw_engine_open(model, NULL, &engine, &error), &error)) goto end;
    if (argc == 3) {
        if (say(engine, &chat, argv[2], strlen(argv[2]))) goto end;
    } else {
        while (printf("> "), fflush(stdout), fgets(line, sizeof line, stdin))
            if (say(engine, &chat, line, strcspn(line, "\n"))) goto end;
        puts("");
    }
    status = EXIT_SUCCESS;

end:
    gw_engine_close(&engine);
    gw_source_free(&model);
    for (size_t i = 0; i < chat.count; i++) free((char *)chat.messages[i].content);
    free(chat.messages);
    return status;
}
