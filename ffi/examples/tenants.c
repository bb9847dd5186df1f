/* Many tenants with an adapter each, of which memory holds 64; adapters are replaced under the requests.
 *
 *     tenants MODEL [TENANTS [REQUESTS [verify]]]
 *
 * Makes the adapters up, in a temporary folder: LoRAs of q_proj, which is taken to be as wide as the model. Ends with 1 if
 * they ever took more memory than they may; with `verify`, also if an answer is not, to the bit, that of the adapter that its
 * tenant had, alone in an engine without a limit. */
#define _POSIX_C_SOURCE 200809L
#include <graftwork.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HELD = 64, AT_ONCE = 32, RANK = 4, PROMPT = 8, TOKENS = 4, EACH = 10 /* requests: one replacement. */ };

/* A request: whose it is, which of the tenant's adapters answers, and what it heard. */
typedef struct {
    unsigned number, tenant, version;
    uint64_t hash; /* Of its tokens and their logits. */
} asked;

typedef struct {
    unsigned version;
    uint64_t generation;
} tenant;

static char folder[] = "/tmp/tenants-XXXXXX";
static tenant *tenants;
static unsigned count = 500, replaced;
static atomic_uint done;
static gw_engine *engine;
static gw_engine_info model = GW_ENGINE_INFO_INIT;
static pthread_mutex_t naming = PTHREAD_MUTEX_INITIALIZER; /* Held while it must be known what a name means. */

/* Ends the program if a call failed. */
static void must(gw_status status, gw_error **error) {
    if (status == GW_OK) return;
    fprintf(stderr, "tenants: %s: %s\n", gw_status_name(status), *error ? gw_error_message(*error, NULL) : "");
    exit(EXIT_FAILURE);
}

static uint32_t chance(uint32_t *state) { return (*state = *state * 1664525u + 1013904223u) >> 8; }

/* The source of a tenant's adapter, which is written if it is not there. */
static gw_source *adapter(unsigned of, unsigned version) {
    char path[64], file[96];
    gw_source *source = NULL;
    gw_error *error = NULL;
    snprintf(path, sizeof path, "%s/%u.%u", folder, of, version);
    if (mkdir(path, 0700) == 0) {
        const size_t numbers = (size_t)RANK * model.hidden, room = 64 + (size_t)model.layers * 320;
        uint32_t state = of * 2654435761u + version * 40503u;
        char *header = malloc(room), *end = header;
        for (unsigned i = 0; header && i < 2 * model.layers; i++)
            end += sprintf(end, "%c\"base_model.model.model.layers.%u.self_attn.q_proj.lora_%c.weight\":{\"dtype\":\"F32\","
                           "\"shape\":[%u,%u],\"data_offsets\":[%zu,%zu]}", i ? ',' : '{', i / 2, "AB"[i % 2],
                           i % 2 ? model.hidden : RANK, i % 2 ? RANK : model.hidden, 4 * i * numbers, 4 * (i + 1) * numbers);
        snprintf(file, sizeof file, "%s/adapter_config.json", path);
        FILE *config = fopen(file, "w");
        snprintf(file, sizeof file, "%s/adapter_model.safetensors", path);
        FILE *weights = fopen(file, "wb");
        if (!header || !config || !weights) perror(path), exit(EXIT_FAILURE);
        fprintf(config, "{\"peft_type\":\"LORA\",\"r\":%d,\"lora_alpha\":%d,\"target_modules\":[\"q_proj\"]}", RANK, RANK);
        const uint64_t size = (uint64_t)(end - header) + 1;
        for (int i = 0; i < 8; i++) fputc((int)(size >> 8 * i & 0xff), weights);
        fprintf(weights, "%s}", header);
        for (size_t i = 0; i < 2 * model.layers * numbers; i++) {
            const float value = ((float)chance(&state) / 16777216.0f - 0.5f) / 2;
            fwrite(&value, sizeof value, 1, weights);
        }
        if (fclose(config) || fclose(weights)) perror(path), exit(EXIT_FAILURE);
        free(header);
    }
    must(gw_source_path(path, GW_NUL, 0, &source, &error), &error);
    return source;
}

static void clean_up(void) {
    char path[96];
    for (unsigned i = 0; tenants && i < count; i++)
        for (unsigned version = 0; version <= tenants[i].version + 1; version++) {
            snprintf(path, sizeof path, "%s/%u.%u/adapter_config.json", folder, i, version), remove(path);
            snprintf(path, sizeof path, "%s/%u.%u/adapter_model.safetensors", folder, i, version), remove(path);
            snprintf(path, sizeof path, "%s/%u.%u", folder, i, version), remove(path);
        }
    remove(folder);
}

static gw_engine *open_engine(const char *path, uint64_t adapter_bytes) {
    gw_engine_options options = GW_ENGINE_OPTIONS_INIT;
    gw_source *source = NULL;
    gw_engine *opened = NULL;
    gw_error *error = NULL;
    options.kv_bytes = 64 << 20;
    options.max_batch = AT_ONCE;
    options.adapter_bytes = adapter_bytes;
    must(gw_source_path(path, GW_NUL, 0, &source, &error), &error);
    must(gw_engine_open(source, &options, &opened, &error), &error);
    gw_source_free(&source);
    return opened;
}

static int32_t hear(void *user, const gw_event *event) {
    asked *request = user;
    if (event->kind == GW_EVENT_FAILED) must(event->status, &(gw_error *){NULL});
    if (event->kind == GW_EVENT_FINISHED) atomic_fetch_add(&done, 1);
    const unsigned char *bytes = (const unsigned char *)event->logits;
    request->hash = (request->hash ^ event->token) * UINT64_C(1099511628211);
    for (size_t i = 0; i < 4 * event->logits_count; i++) request->hash = (request->hash ^ bytes[i]) * UINT64_C(1099511628211);
    return 0;
}

static void submit(const gw_engine *to, const char *name, uint32_t flags, asked *user) {
    gw_request request = GW_REQUEST_INIT;
    gw_use use = {name, GW_NUL, 1, 0};
    gw_error *error = NULL;
    uint32_t tokens[PROMPT], state = user->number;
    for (int i = 0; i < PROMPT; i++) tokens[i] = chance(&state) % model.vocab;
    request.tokens = tokens, request.token_count = PROMPT, request.max_tokens = TOKENS;
    request.adapters = &use, request.adapter_count = 1;
    request.flags = flags | GW_REQUEST_IGNORE_EOS;
    request.on_event = hear, request.user = user;
    must(gw_submit(to, &request, NULL, &error), &error);
}
