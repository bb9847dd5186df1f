/* An adapter that is loaded, used and unloaded 1,000 times leaves memory as it was. */
#include "check.h"

/* An adapter is 140 KB and a cycle allocates some of it as packed copies: one that leaked in each of 900 cycles would
 * show as 126 MB, and a leak of 1 KB in each as 900 KB. Allocators round up and fragment: another 512 KB may come. */
enum { WARM = 100, ALL = 1000, MOST_GROWTH = 512 /* KB */ };

int main(int count, char **arguments) {
    begin(count, arguments);
    gw_engine *engine = open_small();
    uint32_t tokens[16];
    prompt(tokens, 16, 0);
    const gw_use use = {"x", 1, 1.0f, 0};
    gw_request request = ask(tokens, 16, 4);
    request.adapters = &use;
    request.adapter_count = 1;
    const char *const files[] = {"lora_all", "lora_bias"};
    answer first[2];
    gw_memory memory = GW_MEMORY_INIT;
    long before = 0;
    for (int cycle = 0; cycle < ALL; cycle++) {
        if (cycle == WARM) before = resident();
        load(engine, "x", files[cycle % 2]);
        const answer found = answer_to(engine, &request);
        if (cycle < 2) first[cycle] = found;
        CHECK(same(&found, &first[cycle % 2]));
        WORKS(gw_adapter_unload(engine, "x", 1, &error));
        WORKS(gw_engine_memory(engine, &memory, &error));
        EQUAL(0, memory.adapters);
        EQUAL(0, memory.kv_used);
    }
    CHECK(!same(&first[0], &first[1]));
    const long growth = resident() - before;
    if (growth > MOST_GROWTH) FAIL("grew by %ld KB in %d cycles", growth, ALL - WARM);
    gw_engine_close(&engine);
    return 0;
}
