"""Requests that are saved and go on; adapters under a budget; contexts that shift."""

import asyncio
import gc
import tempfile
import unittest
from pathlib import Path

import golden
import graftwork
from graftwork import _callbacks

PROMPT = [5, 6, 7] * 30
OPTIONS = {"adapters": {"mine": 0.5}, "max_tokens": 12, "ignore_eos": True, "temperature": 0.8, "seed": 3, "logits": True}


def bits(answer):
    """What an answer is, to the bit."""
    return answer.tokens, [golden.rows(logits) for logits in answer.logits]


class States(unittest.TestCase):
    def setUp(self):
        self.kept = _callbacks.kept()
        self.engine = graftwork.Engine(golden.BASE, threads=1)
        self.engine.load_adapter("mine", golden.GOLDEN / "lora_all")
        self.other = graftwork.Engine(golden.BASE, threads=2)
        self.other.load_adapter("of another name", golden.GOLDEN / "lora_all")
        self.tokens, self.logits = bits(self.engine.generate(PROMPT, **OPTIONS).result())

    def tearDown(self):
        self.engine.close()
        self.other.close()
        gc.collect()
        self.assertEqual(_callbacks.kept(), self.kept)

    def saved(self, at=5):
        stream = self.engine.generate(PROMPT, **OPTIONS)
        for _ in range(at):
            next(stream)
        return self.engine.save(stream)

    def check(self, answer, at=5):
        self.assertEqual(bits(answer), (self.tokens[at:], self.logits[at:]))

    def test_every_token(self):
        for at in range(len(self.tokens)):
            stream = self.engine.generate(PROMPT, **OPTIONS)
            for _ in range(at):
                next(stream)
            state = self.engine.save(stream)
            self.assertIsInstance(state, bytes)
            self.check(stream.result(), at)
            with self.assertRaises(graftwork.NotFoundError):
                self.engine.save(stream)
            self.check((self.engine if at % 2 else self.other).resume(state).result(), at)

    def test_ways(self):
        state = self.saved()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state")
            id = self.engine.submit(PROMPT, **OPTIONS)
            for _ in range(5):
                self.engine.poll(id)
            path.write_bytes(b"something else")
            self.engine.save_to(id, path)
            self.assertEqual(path.read_bytes(), state)
            self.assertEqual([file.name for file in Path(folder).iterdir()], ["state"])
            with self.assertRaises(graftwork.Error):
                self.engine.save_to(id, Path(folder, "no", "such", "folder"))
            with open(path, "rb") as file:
                for source in (bytearray(state), path, str(path), file, graftwork.Source.path(path, copy=True)):
                    self.check(self.other.resume(source).result())

        told = []
        self.other.resume_to(state, told.append)
        id = self.other.resume_to(state)
        while self.other.step():
            pass
        self.assertEqual([event.token for event in told[:-1]], self.tokens[5:])
        self.assertEqual(self.other.poll(id).token, self.tokens[5])

    def test_logprobs(self):
        stream = self.engine.generate(PROMPT, **OPTIONS, logprobs=True, top_logprobs=2)
        next(stream)
        answer = self.other.resume(self.engine.save(stream), logprobs=True).result()
        whole = stream.result()
        self.assertEqual((answer.logprobs, answer.top), (whole.logprobs, whole.top))
        self.assertEqual(len(answer.logprobs), 11)

    def test_a_callback_that_raises(self):
        def raises(event):
            raise KeyError(event.token)

        self.other.resume_to(self.saved(), raises)
        with self.assertRaises(KeyError):
            while self.other.step():
                pass
        self.assertFalse(self.other.step())

    def test_refused(self):
        state = self.saved()
        changed = state[:100] + bytes([state[100] ^ 1]) + state[101:]
        for wrong in (b"", state[:-1], changed, state + b"\0", b"no state"):
            for resume in (self.other.resume, self.other.resume_to, lambda s: self.other.resume_to(s, print)):
                with self.assertRaises(graftwork.FormatError):
                    resume(wrong)
        with self.assertRaises(graftwork.InvalidArgError):
            self.other.resume({"state": state})
        with self.assertRaises(graftwork.NotFoundError):
            self.other.resume("/no/such/file")
        with self.assertRaises(TypeError):
            self.other.resume(7)
        with self.assertRaises(TypeError):
            self.other.resume_to(state, 7)
        with self.assertRaises(TypeError):
            self.engine.save("7")
        with self.assertRaises(graftwork.NotFoundError):
            self.engine.save(12345)
        self.other.replace_adapter("of another name", golden.GOLDEN / "lora")
        with self.assertRaises(graftwork.FormatError):
            self.other.resume(state)
        with graftwork.Engine(golden.BASE, kv_format=graftwork.GW_KV_F32) as engine:
            engine.load_adapter("mine", golden.GOLDEN / "lora_all")
            with self.assertRaises(graftwork.FormatError):
                engine.resume(state)
        self.engine.close()
        with self.assertRaises(graftwork.ClosedError):
            self.engine.resume(state)
        with self.assertRaises(graftwork.ClosedError):
            self.engine.save(1)

    def test_asyncio(self):
        state = self.saved()

        async def work():
            resumed = await asyncio.gather(self.other.aresume(state).result(), self.other.aresume(state).result())
            with self.assertRaises(graftwork.FormatError):
                self.other.aresume(b"no state")
            async for _ in self.other.aresume(state):
                break  # Cancels it.
            # Another thread steps, so that it is saved at some token.
            stream = self.engine.agenerate([1, 2], **{**OPTIONS, "max_tokens": 400})
            await stream.__anext__()
            running = await self.engine.asave(stream)
            rest = await self.other.aresume(running).result()
            whole = await stream.result()
            self.assertLess(len(rest.tokens), 400)
            self.assertEqual(rest.tokens, whole.tokens[len(whole.tokens) - len(rest.tokens) :])
            await self.engine.aclose()
            await self.other.aclose()
            return resumed

        for answer in asyncio.run(work()):
            self.check(answer)


class Budgets(unittest.TestCase):
    def test_adapters_make_room(self):
        expected, limit = {}, 0
        with graftwork.Engine(golden.BASE, threads=1) as engine:
            self.assertEqual(engine.memory().adapters_limit, 0)
            for name in ("lora", "lora_all", "lora_bias", "lora_rslora"):
                with engine.load_adapter(name, golden.GOLDEN / name) as adapter:
                    self.assertTrue(adapter.info.resident)
                    self.assertFalse(adapter.info.pinned)
                    self.assertEqual(adapter.info.loads, 1)
                    expected[name] = engine.generate(PROMPT, adapters=name, max_tokens=6).result().tokens
                    limit = max(limit, 2 * adapter.info.bytes)
        with graftwork.Engine(golden.BASE, threads=1, adapter_bytes=limit) as engine:
            self.assertEqual(engine.memory().adapters_limit, limit)
            adapters = {name: engine.load_adapter(name, golden.GOLDEN / name) for name in expected}
            first = adapters["lora"].generation
            for _ in range(3):
                for name, tokens in expected.items():
                    found = engine.generate(PROMPT, adapters=name, max_tokens=6).result().tokens
                    self.assertEqual(found, tokens)
                    self.assertLessEqual(engine.memory().adapters, limit)
            self.assertFalse(all(info.resident for info in engine.adapters()))
            self.assertGreater(max(info.loads for info in engine.adapters()), 1)
            self.assertEqual(adapters["lora"].info.generation, first)
            adapters["lora"].pin()
            self.assertTrue(adapters["lora"].info.pinned)
            for name in expected:
                engine.generate(PROMPT, adapters=name, max_tokens=1).result()
                self.assertTrue(adapters["lora"].info.resident)
            adapters["lora"].unpin()
            self.assertFalse(adapters["lora"].info.pinned)
            with self.assertRaises(graftwork.NotFoundError):
                engine.pin_adapter("nobody")

    def test_limits(self):
        plan = graftwork.Engine.plan(golden.BASE, threads=1)
        for name, bytes in (("weight_bytes", plan.weights // 2), ("scratch_bytes", 1000)):
            with self.assertRaises(graftwork.BudgetError) as caught:
                graftwork.Engine(golden.BASE, threads=1, **{name: bytes})
            self.assertEqual(caught.exception.detail, name)
        with graftwork.Engine(golden.BASE, threads=1, adapter_bytes=1) as engine:
            with self.assertRaises(graftwork.BudgetError):
                engine.load_adapter("a", golden.GOLDEN / "lora")


class Contexts(unittest.TestCase):
    def test_shift(self):
        with graftwork.Engine(golden.BASE, threads=1) as engine:
            prompt = list(range(3, 403))
            stopped = engine.generate(prompt, max_tokens=300, ignore_eos=True).result()
            self.assertEqual((len(stopped.tokens), stopped.finish_reason), (512 - 400, "length"))
            for context in ("shift", graftwork.GW_CONTEXT_SHIFT):
                answer = engine.generate(prompt, max_tokens=300, ignore_eos=True, context=context, keep=10).result()
                self.assertEqual((len(answer.tokens), answer.finish_reason), (300, "length"))
                self.assertEqual(answer.tokens[:112], stopped.tokens)
            for context, mistake in (("slide", graftwork.InvalidArgError), (9, graftwork.InvalidArgError), (None, TypeError)):
                with self.assertRaises(mistake):
                    engine.generate(prompt, context=context)


if __name__ == "__main__":
    unittest.main()
