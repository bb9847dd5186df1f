"""Engines: opening from every kind of source, what is known of them, closing."""

import concurrent.futures
import gc
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import golden
import graftwork
from graftwork import _callbacks


def greedy(engine, **options):
    return engine.generate([5, 6, 7], max_tokens=6, **options).result().tokens


class Engines(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with graftwork.Engine(golden.BASE) as engine:
            cls.answer = greedy(engine)

    def test_sources(self):
        files = golden.directory(golden.BASE)
        path = golden.BASE / "model.safetensors"
        with open(path, "rb") as file, tempfile.TemporaryFile() as padded:
            padded.write(b"x" * 100 + path.read_bytes() + b"y" * 100)
            padded.flush()
            weights = {
                "bytes": files["model.safetensors"],
                "bytearray": bytearray(files["model.safetensors"]),
                "memoryview": memoryview(files["model.safetensors"]),
                "path": path,
                "file": file,
                "BytesIO": io.BytesIO(files["model.safetensors"]),
                "fd": graftwork.Source.fd(padded.fileno(), 100, path.stat().st_size),
                "source": graftwork.Source.path(os.fsencode(path), copy=True),
            }
            for name, source in weights.items():
                with self.subTest(name):
                    model = {**files, "model.safetensors": source}
                    with graftwork.Engine(model, threads=1) as engine:
                        self.assertEqual(greedy(engine), self.answer)
        source = graftwork.Source.path(str(golden.BASE))
        with graftwork.Engine(source) as one, graftwork.Engine(source) as two:
            self.assertEqual(greedy(one), self.answer)
            self.assertEqual(greedy(two), self.answer)

    def test_memory_is_let_go_of(self):
        before = _callbacks.kept()
        model = golden.directory(golden.BASE)
        engine = graftwork.Engine(model)
        model["model.safetensors"] = None
        gc.collect()
        self.assertEqual(greedy(engine), self.answer)
        engine.close()
        self.assertEqual(_callbacks.kept(), before)

    def test_info_and_memory(self):
        with graftwork.Engine(golden.BASE, threads=1, kv_bytes=1 << 20) as engine:
            info = engine.info
            self.assertEqual((info.vocab, info.context, info.layers, info.hidden), (512, 512, 3, 128))
            self.assertEqual((info.architecture, info.threads), ("llama", 1))
            self.assertFalse(info.has_tokenizer or info.has_chat)
            self.assertTrue(info.isa)
            plan = graftwork.Engine.plan(golden.BASE, threads=1, kv_bytes=1 << 20)
            memory = engine.memory()
            self.assertEqual((plan.weights, plan.kv, plan.kv_limit), (memory.weights, 0, memory.kv_limit))
            self.assertGreater(memory.weights, 500_000)
            greedy(engine)
            self.assertGreater(engine.memory().kv, 0)

    def test_options(self):
        for options in (
            {"kv_format": graftwork.GW_KV_F32},
            {"kv_format": graftwork.GW_KV_Q8_0},
            {"max_batch": 1, "prefill_chunk": 1},
            {"no_prefixes": True},
        ):
            with graftwork.Engine(golden.BASE, graftwork.EngineOptions(threads=1), **options) as engine:
                self.assertEqual(len(greedy(engine)), 6)
        with self.assertRaises(graftwork.UnsupportedError) as caught:
            graftwork.Engine(golden.BASE, device=graftwork.GW_DEVICE_GPU)
        self.assertEqual(caught.exception.detail, "device")
        for options in ({"kv_format": 9}, {"log_level": 7, "log": print}, {"threads": -1}, {"kv_bytes": 1 << 64}):
            with self.assertRaises(graftwork.InvalidArgError) as caught:
                graftwork.Engine(golden.BASE, **options)
            self.assertEqual(caught.exception.detail, next(iter(options)))

    def test_progress_and_log(self):
        told, lines = [], []
        with graftwork.Engine(
            golden.BASE,
            progress=lambda done, all: told.append((done, all)),
            log=lambda level, message: lines.append((level, message)),
            log_level=graftwork.GW_LOG_DEBUG,
        ) as engine:
            greedy(engine)
        self.assertTrue(told and all(done <= every for done, every in told))
        self.assertTrue(lines)
        for level, message in lines:
            self.assertIn(level, (1, 2, 3))
            self.assertIsInstance(message, str)
        before = _callbacks.kept()
        with self.assertRaises(graftwork.CancelledError):
            graftwork.Engine(golden.BASE, progress=lambda done, all: True, log=print)
        with self.assertRaises(KeyError):
            graftwork.Engine(golden.BASE, progress=lambda done, all: {}[done])
        self.assertEqual(_callbacks.kept(), before)

    def test_a_log_that_raises(self):
        seen = []
        hook = sys.unraisablehook
        sys.unraisablehook = lambda unraisable: seen.append(unraisable.exc_type)
        try:
            with graftwork.Engine(golden.BASE, log=lambda level, message: {}[0], log_level=3) as engine:
                self.assertEqual(greedy(engine), self.answer)
        finally:
            sys.unraisablehook = hook
        self.assertIn(KeyError, seen)

    def test_an_executor(self):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            with graftwork.Engine(golden.BASE, threads=3, executor=pool) as engine:
                self.assertEqual(greedy(engine), self.answer)
                pool.shutdown()  # Takes no tasks any more.
                self.assertEqual(greedy(engine), self.answer)

        class Forgetful:
            def submit(self, task):
                pass

        with graftwork.Engine(golden.BASE, threads=3, executor=Forgetful()) as engine:
            self.assertEqual(greedy(engine), self.answer)

    def test_closing(self):
        engine = graftwork.Engine(golden.BASE)
        stream = engine.generate([1, 2], ignore_eos=True)
        next(stream)
        self.assertFalse(engine.closed)
        engine.close()
        engine.close()
        self.assertTrue(engine.closed)
        calls = (
            lambda: next(stream),
            engine.step,
            engine.poll,
            engine.memory,
            engine.adapters,
            lambda: engine.cancel(1),
            lambda: engine.submit([1]),
            lambda: engine.generate([1]),
            lambda: engine.logits([1]),
            lambda: engine.load_adapter("a", golden.GOLDEN / "lora"),
        )
        for call in calls:
            with self.assertRaises(graftwork.ClosedError):
                call()
        stream.close()
        self.assertIn("closed", repr(engine))

    def test_closing_under_other_threads(self):
        for _ in range(10):
            engine = graftwork.Engine(golden.BASE, threads=1)
            outcomes = []

            def work(engine=engine, outcomes=outcomes):
                try:
                    while True:
                        engine.generate([1, 2, 3], max_tokens=400, ignore_eos=True).result()
                except graftwork.ClosedError:
                    outcomes.append("closed")

            def wait(engine=engine, outcomes=outcomes):
                try:
                    engine.poll()
                except graftwork.ClosedError:
                    outcomes.append("closed")

            threads = [threading.Thread(target=t) for t in (work, work, wait)]
            for thread in threads:
                thread.start()
            threading.Event().wait(0.05)
            engine.close()
            for thread in threads:
                thread.join(10)
                self.assertFalse(thread.is_alive())
            self.assertEqual(outcomes, ["closed"] * 3)

    def test_closing_in_a_callback(self):
        before = _callbacks.kept()
        engine = graftwork.Engine(golden.BASE)
        engine.submit([1, 2], on_event=lambda event: engine.close(), max_tokens=5)
        with self.assertRaises(graftwork.ClosedError):
            while True:
                engine.step()
        self.assertTrue(engine.closed)
        del engine
        gc.collect()
        self.assertEqual(_callbacks.kept(), before)

    @unittest.skipUnless(hasattr(signal, "setitimer"), "no timers")
    def test_what_handlers_of_signals_raise(self):
        class Alarm(Exception):
            pass

        folder, raised, heard = os.path.dirname(graftwork.__file__), 0, set()

        def ring(number, frame):
            nonlocal raised
            if frame.f_code.co_filename.startswith(folder):
                raised += 1
                raise Alarm(raised)

        def hear(exception):
            # One that comes while another is on its way has that with it. None is kept: its frames would keep streams.
            while exception is not None:
                if isinstance(exception, Alarm):
                    heard.update(exception.args)
                exception = exception.__context__

        def ignore(unraisable):
            # Some are raised where destructors run: there Python itself ignores them.
            hear(unraisable.exc_value)
            messages.append(str(unraisable.err_msg))

        messages = []

        engine = graftwork.Engine(golden.BASE)
        hook, sys.unraisablehook = sys.unraisablehook, ignore
        handler = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        try:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                try:
                    for event in engine.generate([1], max_tokens=20, ignore_eos=True):
                        pass
                    engine.submit([1], lambda event: None, max_tokens=20)
                    while engine.step():
                        pass
                    engine.poll(timeout=0.001)
                except Alarm as alarm:
                    hear(alarm)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            # If a signal came on the way out, the hook stays, and passes on what is not its own.
            self.assertIn(sys.unraisablehook, (ignore, _callbacks._hook))
            sys.unraisablehook = hook
        self.assertGreater(raised, 20)
        self.assertLessEqual(raised - len(heard), raised / 20)
        self.assertNotIn("ctypes", "".join(messages))
        while engine.step():
            pass
        engine.close()

    def test_a_child_process(self):
        if not hasattr(os, "fork"):
            self.skipTest("no fork")
        with graftwork.Engine(golden.BASE) as engine:
            child = os.fork()
            if not child:
                try:
                    engine.step()
                except graftwork.ClosedError:
                    engine.close()
                    os._exit(7)
                os._exit(1)
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 7)
            self.assertEqual(greedy(engine), self.answer)


class Programs(unittest.TestCase):
    """How programs end that have an engine."""

    def run_program(self, code, signal=None):
        # Whoever started the tests may have had them ignore Ctrl-C, as shells do in the background.
        begin = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nimport graftwork, threading\n"
        code = f"{begin}engine = graftwork.Engine({str(golden.BASE)!r})\n" + code
        path = os.pathsep.join(sys.path)
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                if signal is not None:
                    self.assertEqual(process.stdout.readline(), "ready\n")
                    time.sleep(0.1)
                    process.send_signal(signal)
                out, errors = process.communicate(timeout=20)
            except BaseException:
                process.kill()
                raise
        return process.returncode, out, errors

    def test_what_is_left_open(self):
        for code in (
            "stream = engine.generate([1], ignore_eos=True); next(stream)",
            "engine.submit([1], print); threading.Thread(target=engine.poll, daemon=True).start()",
            "def work():\n    while True: engine.generate([1], max_tokens=50, ignore_eos=True).result()\n"
            "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
            "import time; time.sleep(0.1)",
            "import asyncio\nloop = asyncio.new_event_loop()\n"
            "async def one():\n    return await anext(engine.agenerate([1], ignore_eos=True))\n"
            "print(loop.run_until_complete(one()).kind)",
        ):
            with self.subTest(code):
                status, _, errors = self.run_program(code)
                self.assertEqual(status, 0, errors)
                self.assertNotIn("Fatal", errors)

    def test_what_logs_raise(self):
        status, out, errors = self.run_program(
            f"def log(level, text): raise ValueError('of the log')\n"
            f"graftwork.Engine({str(golden.BASE)!r}, log=log)\nprint('opened')"
        )
        self.assertEqual((status, out), (0, "opened\n"), errors)
        self.assertIn("ValueError: of the log", errors)

    @unittest.skipIf(sys.platform == "win32", "no SIGINT to others")
    def test_ctrl_c(self):
        for code in (
            "print('ready', flush=True); engine.poll()",
            "print('ready', flush=True)\nwhile True: engine.generate([1], ignore_eos=True).result()",
            "def hear(event): return None\nprint('ready', flush=True)\n"
            "while True:\n    engine.submit([1], hear, ignore_eos=True)\n    while engine.step(): pass",
        ):
            with self.subTest(code):
                status, _, errors = self.run_program(code, signal.SIGINT)
                self.assertEqual(status, -signal.SIGINT, errors)
                self.assertTrue(errors.rstrip().endswith("KeyboardInterrupt"), errors)


if __name__ == "__main__":
    unittest.main()
