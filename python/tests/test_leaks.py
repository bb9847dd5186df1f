"""A thousand requests leave nothing behind."""

import asyncio
import gc
import sys
import threading
import unittest

import golden
import graftwork
from graftwork import _callbacks


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def settled():
    """Collects garbage, when the thread that steps for event loops has ended."""
    for thread in threading.enumerate():
        if thread.name == "graftwork-step":
            thread.join(10)
    gc.collect()


@unittest.skipUnless(sys.platform == "linux", "reads /proc")
class Leaks(unittest.TestCase):
    def check(self, work, rounds=1000, allowed=1 << 20):
        with graftwork.Engine(golden.BASE, threads=1, max_batch=4) as engine:
            engine.load_adapter("lora", golden.GOLDEN / "lora")
            for _ in range(rounds // 4):
                work(engine)
            settled()
            kept, objects = _callbacks.kept(), len(gc.get_objects())
            grown = []
            # An allocator may grow once; a leak grows every time.
            while not grown or grown[-1] >= allowed and len(grown) < 3:
                before = resident()
                for _ in range(rounds):
                    work(engine)
                settled()
                self.assertEqual(_callbacks.kept(), kept)
                grown.append(resident() - before)
            self.assertLess(len(gc.get_objects()) - objects, 50)
            self.assertLess(grown[-1], allowed, grown)

    def test_streams(self):
        self.check(lambda engine: engine.generate([1, 2], max_tokens=3, logits=True, adapters="lora").result())

    def test_streams_that_are_left(self):
        def work(engine):
            stream = engine.generate([1, 2], ignore_eos=True)
            next(stream)

        self.check(work)

    def test_callbacks_and_polls(self):
        def work(engine):
            engine.submit([1, 2], lambda event: None, max_tokens=2)
            id = engine.submit([1, 2], max_tokens=2, ignore_eos=True)
            while not engine.poll(id).last:
                pass

        self.check(work)

    def test_errors(self):
        def work(engine):
            for call in (lambda: engine.generate([]), lambda: engine.poll(1), lambda: engine.load_adapter("x", b"y")):
                try:
                    call()
                except graftwork.Error:
                    pass

        self.check(work)

    def test_asyncio(self):
        async def work(engine):
            await asyncio.gather(*(engine.agenerate([i + 1], max_tokens=2).result() for i in range(10)))

        self.check(lambda engine: asyncio.run(work(engine)), rounds=100)

    def test_adapters(self):
        files = golden.directory(golden.GOLDEN / "lora")

        def work(engine):
            with engine.load_adapter("a", files) as adapter:
                adapter.replace(files)

        self.check(work, rounds=200, allowed=2 << 20)

    def test_engines(self):
        gc.collect()
        files = golden.directory(golden.BASE)

        def work():
            with graftwork.Engine(files, threads=2) as engine:
                engine.generate([1], max_tokens=1).result()
                engine.generate([1], ignore_eos=True)

        for _ in range(10):
            work()
        before = resident()
        for _ in range(40):
            work()
        self.assertLess(resident() - before, 8 << 20)


if __name__ == "__main__":
    unittest.main()
