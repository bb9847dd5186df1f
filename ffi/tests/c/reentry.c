/* Callbacks that call the library, and threads that wait for each other in it. Whatever waits for ever is ended by an alarm. */
#include "check.h"

enum { LENGTH = 20, PATIENCE = 60 /* s */ };

static gw_engine *engine;
static uint32_t tokens[200];
static atomic_int drops;

static void count_drop(void *user) {
    (void)user;
    atomic_fetch_add(&drops, 1);
}

static gw_request told(gw_event_fn on_event, void *user) {
    gw_request request = ask(tokens, LENGTH, LENGTH);
    request.on_event = on_event;
    request.user = user;
    request.drop = count_drop;
    return request;
}

static void submit(const gw_request *request) { WORKS(gw_submit(engine, request, NULL, &error)); }

/* ------------------------------------------------------------------------------------------ Closed from a callback */

static int32_t close_it(void *user, const gw_event *event) {
    (void)event;
    CHECK((*(int *)user)++ == 0); /* Nobody hears anything after that. */
    gw_engine_close(&engine);
    return 0;
}

static void closed_in_a_step(void) {
    int heard = 0, live = -1;
    engine = open_small();
    drops = 0;
    const gw_request request = told(close_it, &heard);
    submit(&request);
    submit(&request);
    const gw_engine *const held = engine;
    while (engine) WORKS(gw_step(held, &live, &error));
    CHECK(live == 0 && heard == 1 && drops == 2);
}

static void closed_in_a_poll(void) {
    int heard = 0;
    engine = open_small();
    drops = 0;
    const gw_request request = told(close_it, &heard);
    submit(&request);
    submit(&request);
    gw_event *event = NULL;
    FAILS(GW_ERR_CANCELLED, "closed", gw_poll(engine, 0, GW_FOREVER, &event, &error));
    CHECK(!event && heard == 1 && drops == 2);
}

/* -------------------------------------------------------------------------------------------- Live until it was told */

static atomic_int heard, ended;

static int32_t hear_slowly(void *user, const gw_event *event) {
    (void)user;
    usleep(2000);
    if (event->kind != GW_EVENT_TOKEN) atomic_store(&ended, 1);
    atomic_fetch_add(&heard, 1);
    return 0;
}

static void *step_all(void *user) {
    (void)user;
    for (int32_t live = 1; live;) WORKS(gw_step(engine, &live, &error));
    CHECK(ended);
    return NULL;
}

/* The loop of each thread ends when the last event was heard, also if the other thread calls the callback. */
static void live_until_it_was_told(void) {
    engine = open_small();
    drops = heard = ended = 0;
    const gw_request request = told(hear_slowly, NULL);
    submit(&request);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, step_all, NULL) == 0);
    while (!heard) usleep(100);
    step_all(NULL);
    CHECK(heard == LENGTH + 1 && drops == 1);
    CHECK(pthread_join(other, NULL) == 0);
    gw_engine_close(&engine);
}

/* ------------------------------------------------------------------------------------------ Steps from a callback */

static int inner;

static int32_t step_from_here(void *user, const gw_event *event) {
    (void)user;
    CHECK(inner == 0); /* Callbacks of an engine do not nest. */
    inner = 1;
    if (event->kind == GW_EVENT_TOKEN)
        for (int32_t live = 1; live;) WORKS(gw_step(engine, &live, &error));
    inner = 0;
    atomic_fetch_add(&heard, 1);
    return 0;
}

static void steps_from_a_callback(void) {
    engine = open_small();
    drops = heard = 0;
    const gw_request request = told(step_from_here, NULL);
    submit(&request);
    submit(&request);
    for (int32_t live = 1; live;) WORKS(gw_step(engine, &live, &error));
    CHECK(heard == 2 * (LENGTH + 1) && drops == 2);
    gw_engine_close(&engine);
}

/* ------------------------------------------------------------------------------------------- Waiting for one's turn */

static atomic_int over;

static void *compute_beside(void *user) {
    (void)user;
    static float logits[200 * VOCAB];
    gw_memory memory = GW_MEMORY_INIT;
    while (!over) {
        WORKS(gw_logits(engine, tokens, 200, NULL, 0, logits, 200 * VOCAB, &error));
        WORKS(gw_engine_memory(engine, &memory, &error));
        usleep(50);
    }
    return NULL;
}

/* A poll that waits because another thread computes something else goes on afterwards. */
static void polls_beside_other_work(void) {
    engine = open_small();
    over = 0;
    const gw_request request = ask(tokens, LENGTH, LENGTH);
    const answer alone = answer_to(engine, &request);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, compute_beside, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        const answer found = answer_to(engine, &request);
        CHECK(same(&alone, &found));
    }
    over = 1;
    CHECK(pthread_join(other, NULL) == 0);
    gw_engine_close(&engine);
}

int main(int count, char **arguments) {
    begin(count, arguments);
    alarm(PATIENCE);
    prompt(tokens, 200, 1);
    closed_in_a_step();
    closed_in_a_poll();
    live_until_it_was_told();
    steps_from_a_callback();
    polls_beside_other_work();
    return 0;
}
