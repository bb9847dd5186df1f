"""Not run: what type checkers must accept, and know."""

import asyncio
import concurrent.futures
from pathlib import Path

from typing_extensions import assert_type

import graftwork

engine = graftwork.Engine(Path("model.gguf"), threads=2, kv_format=graftwork.GW_KV_F16, log=lambda level, text: None)
graftwork.Engine({"config.json": b"", "model.safetensors": Path("x"), "more": {"a": b""}}, graftwork.EngineOptions())
graftwork.Engine(b"", executor=concurrent.futures.ThreadPoolExecutor(1), progress=lambda done, all: done > all)
assert_type(engine.info.vocab, int)
assert_type(engine.memory(), graftwork.Memory)
adapter = engine.load_adapter("a", "path")
assert_type(adapter, graftwork.Adapter)
for event in engine.generate("text", adapters=adapter, max_tokens=3):
    assert_type(event, graftwork.Event)
    assert_type(event.text, str)
engine.generate([1, 2], adapters=[("a", 0.5), adapter], stops="x", logit_bias={3: 1.0})
engine.generate([{"role": "user", "content": "x"}], adapters={"a": 1.0}, stops=["x"])
engine.generate([("user", "x")], adapters=("a", 1.0))
engine.generate({"messages": [], "tools": []})
engine.generate(graftwork.Request(messages=[graftwork.Message("user", "x")]))
assert_type(engine.generate([1]).result(), graftwork.Answer)
assert_type(engine.submit("x", lambda event: event.last), int)
assert_type(engine.poll(), graftwork.Event)
engine.generate("x", context="shift", keep=4)
engine.generate("x", context=graftwork.GW_CONTEXT_STOP)
adapter.pin()
assert_type(adapter.info.resident, bool)
graftwork.Engine("x", weight_bytes=1, adapter_bytes=1, scratch_bytes=1)
state = engine.save(engine.generate("x"))
assert_type(state, bytes)
engine.save_to(7, Path("state"))
assert_type(engine.resume(state), graftwork.Stream)
assert_type(engine.resume_to(Path("state"), lambda event: event.last), int)
assert_type(engine.resume_to(graftwork.Source.path("state")), int)
assert_type(engine.poll(timeout=1), "graftwork.Event | None")


async def ask() -> str:
    async with engine.agenerate("x", temperature=1.0) as stream:
        async for event in stream:
            assert_type(event, graftwork.Event)
        assert_type(await engine.asave(stream), bytes)
    assert_type(engine.aresume(b"state"), graftwork.AsyncStream)
    return (await engine.agenerate("x").result()).text


asyncio.run(ask())
