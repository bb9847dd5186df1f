/* The loops of overhead.py in C, for its engine: a shared library. */
#include <graftwork.h>

#include <string.h>

/* What a loop saw: both languages must have seen the same. */
typedef struct {
    uint64_t tokens, sum;
} seen;

static void take(seen *seen, const gw_event *event) {
    if (event->kind != GW_EVENT_TOKEN) return;
    seen->sum += event->token;
    seen->tokens++;
}

static int32_t hear(void *user, const gw_event *event) {
    take(user, event);
    return 0;
}

/* Answers a batch, by gw_step and callbacks or by gw_poll. */
gw_status overhead(const gw_engine *engine, int steps, uint32_t batch, uint64_t length, seen *seen) {
    gw_status status = GW_OK;
    memset(seen, 0, sizeof *seen);
    for (uint32_t b = 0; b < batch && status == GW_OK; b++) {
        uint32_t prompt[] = {1, 2, 3, b};
        gw_request request = GW_REQUEST_INIT;
        request.flags = GW_REQUEST_IGNORE_EOS;
        request.tokens = prompt;
        request.token_count = 4;
        request.max_tokens = length;
        request.on_event = steps ? hear : NULL;
        request.user = seen;
        status = gw_submit(engine, &request, NULL, NULL);
    }
    if (steps) {
        for (int32_t live = 1; live && status == GW_OK;) status = gw_step(engine, &live, NULL);
    } else {
        while (batch && status == GW_OK) {
            gw_event *event = NULL;
            status = gw_poll(engine, 0, GW_FOREVER, &event, NULL);
            if (status != GW_OK) break;
            take(seen, event);
            batch -= event->kind != GW_EVENT_TOKEN;
            gw_event_free(&event);
        }
    }
    return status;
}
