"""asyncio: tasks share a batch, are cancelled, and hear what goes wrong."""

import asyncio
import gc
import threading
import unittest

import golden
import graftwork
from graftwork import _callbacks


class Asynchronous(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        self.kept = _callbacks.kept()
        self.engine = graftwork.Engine(golden.BASE)
        self.engine.load_adapter("lora", golden.GOLDEN / "lora")

    async def asyncTearDown(self):
        await self.engine.aclose()
        for thread in threading.enumerate():
            if thread.name == "graftwork-step":
                await asyncio.get_running_loop().run_in_executor(None, thread.join, 10)
        self.assertNotIn("graftwork-step", [thread.name for thread in threading.enumerate()])
        gc.collect()
        self.assertEqual(_callbacks.kept(), self.kept)

    async def idle(self):
        while self.engine.memory().kv_used:
            await asyncio.sleep(0.01)

    async def test_events(self):
        kinds = [event.kind async for event in self.engine.agenerate([1, 2], max_tokens=5, ignore_eos=True)]
        self.assertEqual(kinds, [1] * 5 + [2])
        answer = await self.engine.agenerate([1, 2], max_tokens=5, ignore_eos=True).result()
        alone = self.engine.generate([1, 2], max_tokens=5, ignore_eos=True).result()
        self.assertEqual((answer.tokens, answer.finish_reason), (alone.tokens, "length"))

    async def test_tasks_share_a_batch(self):
        prompts = [[i + 1, i + 2] for i in range(12)]
        alone = [
            self.engine.generate(p, adapters="lora" if p[0] % 2 else (), max_tokens=20, ignore_eos=True).result().tokens
            for p in prompts
        ]
        steppers = set()
        plain = self.engine._step

        def step():
            steppers.add(threading.get_ident())
            return plain()

        self.engine._step = step

        async def task(prompt):
            tokens = []
            stream = self.engine.agenerate(
                prompt, adapters="lora" if prompt[0] % 2 else (), max_tokens=20, ignore_eos=True
            )
            async for event in stream:
                if not event.last:
                    tokens.append(event.token)
            return tokens

        found = await asyncio.gather(*map(task, prompts))
        del self.engine._step
        self.assertEqual(found, alone)
        self.assertEqual(len(steppers), 1, "one thread steps")

    async def test_cancelled_tasks(self):
        async def endless():
            async for _ in self.engine.agenerate([1], ignore_eos=True):
                pass

        async def stuck():
            async for _ in self.engine.agenerate([1], ignore_eos=True):
                await asyncio.sleep(100)

        async def block():
            async with self.engine.agenerate([1], ignore_eos=True) as stream:
                await stream.__anext__()
                await asyncio.sleep(100)

        for work in (endless, stuck, block):
            task = asyncio.create_task(work())
            await asyncio.sleep(0.03)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            del task
            await asyncio.wait_for(self.idle(), 10)
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(endless(), 0.05)
        await asyncio.wait_for(self.idle(), 10)

    async def test_leaving_the_loop_cancels(self):
        async for _ in self.engine.agenerate([1], ignore_eos=True):
            break
        await asyncio.wait_for(self.idle(), 10)
        stream = self.engine.agenerate([1], ignore_eos=True)
        await stream.__anext__()
        await stream.aclose()
        self.assertEqual([event async for event in stream], [])
        await asyncio.wait_for(self.idle(), 10)

    async def test_cancel_is_an_event(self):
        stream = self.engine.agenerate([1], ignore_eos=True)
        await stream.__anext__()
        self.engine.cancel(stream.id)
        self.assertEqual((await stream.result()).finish_reason, "cancelled")

    async def test_errors(self):
        with self.assertRaises(graftwork.InvalidArgError):
            self.engine.agenerate([])
        with self.assertRaises(TypeError):
            self.engine.agenerate(None)
        stream = self.engine.agenerate([1], max_tokens=400, ignore_eos=True)
        await stream.__anext__()
        first = asyncio.create_task(stream.result())
        await self.engine.aclose()
        with self.assertRaises(graftwork.ClosedError):
            await first
        with self.assertRaises(graftwork.ClosedError):
            self.engine.agenerate([1])

    async def test_two_waiters(self):
        slow = self.engine.agenerate(list(range(1, 400)), max_tokens=100, ignore_eos=True)
        outcomes = await asyncio.gather(slow.result(), slow.result(), return_exceptions=True)
        self.assertIn(RuntimeError, map(type, outcomes))

    async def test_a_failing_callback_of_somebody_else(self):
        import sys

        seen = []
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: seen.append(unraisable.exc_type)

        def fail(event):
            raise graftwork.BudgetError(7, "GW_ERR_BUDGET", "mine")

        try:
            self.engine.submit([1], fail, ignore_eos=True)
            answer = await self.engine.agenerate([1, 2], max_tokens=5, ignore_eos=True).result()
        finally:
            sys.unraisablehook = hook
        self.assertEqual(answer.finish_reason, "length")
        self.assertEqual(seen, [graftwork.BudgetError])

    async def test_a_step_that_fails(self):
        plain, failures = self.engine._step, [graftwork.OutOfMemoryError(6, "GW_ERR_OUT_OF_MEMORY", "none")]

        def step():
            if failures:
                raise failures.pop()
            return plain()

        self.engine._step = step
        with self.assertRaises(graftwork.OutOfMemoryError):
            await self.engine.agenerate([1, 2], max_tokens=5, ignore_eos=True).result()
        answer = await self.engine.agenerate([1, 2], max_tokens=5, ignore_eos=True).result()
        del self.engine._step
        self.assertEqual(answer.finish_reason, "length")

    async def test_beside_a_thread_that_streams(self):
        found = []

        def work():
            for _ in range(10):
                found.append(self.engine.generate([3, 4], max_tokens=10, ignore_eos=True).result().tokens)

        thread = threading.Thread(target=work)
        thread.start()
        answers = [await self.engine.agenerate([3, 4], max_tokens=10, ignore_eos=True).result() for _ in range(10)]
        await asyncio.get_running_loop().run_in_executor(None, thread.join, 30)
        self.assertEqual([answer.tokens for answer in answers], found)


class Loops(unittest.TestCase):
    def test_a_loop_that_is_gone(self):
        engine = graftwork.Engine(golden.BASE)

        async def leave():
            stream = engine.agenerate([1], ignore_eos=True)
            await stream.__anext__()
            return stream

        stream = asyncio.run(leave())
        for thread in threading.enumerate():
            if thread.name == "graftwork-step":
                thread.join(10)
                self.assertFalse(thread.is_alive())
        self.assertEqual(asyncio.run(self.count(engine)), 5)
        del stream
        engine.close()

    async def count(self, engine):
        return len((await engine.agenerate([1], max_tokens=5, ignore_eos=True).result()).tokens)

    def test_loops_in_threads(self):
        with graftwork.Engine(golden.BASE) as engine:
            counts = []
            threads = [threading.Thread(target=lambda: counts.append(asyncio.run(self.count(engine)))) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            self.assertEqual(counts, [5] * 4)

    def test_without_a_loop(self):
        with graftwork.Engine(golden.BASE) as engine:
            with self.assertRaises(RuntimeError):
                engine.agenerate([1])


if __name__ == "__main__":
    unittest.main()
