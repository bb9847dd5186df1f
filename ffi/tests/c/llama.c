/* llama.cpp in the same process: both write from the same prompt with the same model, by turns, and begin alike.
 * Usage: llama MODEL.gguf */
#include "check.h"
#include "llama.h"

enum { LENGTH = 16 };

static void no_log(enum ggml_log_level level, const char *text, void *user) { (void)level, (void)text, (void)user; }

/* The likeliest token after one more piece of the text. */
static uint32_t next_of(struct llama_context *context, llama_token *tokens, int32_t count, int32_t vocab) {
    EQUAL(0, llama_decode(context, llama_batch_get_one(tokens, count)));
    const float *logits = llama_get_logits_ith(context, -1);
    CHECK(logits != NULL);
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return (uint32_t)best;
}

int main(int count, char **arguments) {
    begin(count, arguments);
    gw_source *source = NULL;
    gw_engine *engine = NULL;
    WORKS(gw_source_path(arguments[1], GW_NUL, 0, &source, &error));
    WORKS(gw_engine_open(source, NULL, &engine, &error));

    llama_log_set(no_log, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(arguments[1], llama_model_default_params());
    CHECK(model != NULL);
    struct llama_context *context = llama_init_from_model(model, llama_context_default_params());
    CHECK(context != NULL);
    const int32_t vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    gw_request request = GW_REQUEST_INIT;
    request.text = "The capital of France is";
    request.text_size = GW_NUL;
    request.max_tokens = LENGTH;
    request.flags = GW_REQUEST_IGNORE_EOS;
    uint32_t tokens[64];
    size_t length = 0;
    WORKS(gw_prompt_tokens(engine, &request, tokens, 64, &length, &error));

    uint64_t id = 0;
    WORKS(gw_submit(engine, &request, &id, &error));
    llama_token piece[64];
    for (size_t i = 0; i < length; i++) piece[i] = (llama_token)tokens[i];
    int32_t pieces = (int32_t)length;
    int alike = 0, apart = 0;
    for (int i = 0; i < LENGTH; i++) {
        gw_event *event = NULL;
        WORKS(gw_poll(engine, id, GW_FOREVER, &event, &error));
        CHECK(event && event->kind == GW_EVENT_TOKEN);
        const uint32_t other = next_of(context, piece, pieces, vocab);
        /* Other roundings may choose between near-equals differently, from where on texts differ. */
        apart |= event->token != other;
        alike += !apart;
        piece[0] = (llama_token)other;
        pieces = 1;
        gw_event_free(&event);
    }
    CHECK(alike >= 4);
    llama_free(context);
    llama_model_free(model);
    llama_backend_free();

    /* The one that is left goes on. */
    gw_event *event = NULL;
    WORKS(gw_poll(engine, id, GW_FOREVER, &event, &error));
    CHECK(event && event->kind == GW_EVENT_FINISHED && event->finish == GW_FINISH_LENGTH);
    gw_event_free(&event);
    gw_engine_close(&engine);
    gw_source_free(&source);
    printf("beside llama.cpp: %d of %d tokens alike from the start\n", alike, LENGTH);
    return 0;
}
