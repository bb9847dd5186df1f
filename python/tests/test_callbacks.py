"""Callbacks: what they raise reaches the caller, and the library goes on."""

import gc
import threading
import unittest
import weakref

import golden
import graftwork
from graftwork import _callbacks


class Callbacks(unittest.TestCase):
    def setUp(self):
        self.kept = _callbacks.kept()
        self.engine = graftwork.Engine(golden.BASE)

    def tearDown(self):
        self.engine.close()
        self.assertEqual(_callbacks.kept(), self.kept + 0)

    def run_all(self):
        while self.engine.step():
            pass

    def test_events(self):
        heard = []
        id = self.engine.submit([1, 2, 3], heard.append, max_tokens=4, ignore_eos=True)
        self.run_all()
        self.assertEqual([event.kind for event in heard], [1, 1, 1, 1, 2])
        self.assertEqual({event.request for event in heard}, {id})

    def test_true_cancels(self):
        heard = []

        def hear(event):
            heard.append(event)
            return len(heard) == 2

        self.engine.submit([1, 2, 3], hear, ignore_eos=True)
        self.run_all()
        self.assertEqual([event.finish_reason for event in heard], [None, None, "cancelled"])

    def test_exceptions(self):
        calls = []

        def fail(event):
            calls.append(event)
            raise ZeroDivisionError("mine")

        other = []
        self.engine.submit([1, 2, 3], fail, max_tokens=4, ignore_eos=True)
        self.engine.submit([1, 2, 3], other.append, max_tokens=4, ignore_eos=True)
        with self.assertRaisesRegex(ZeroDivisionError, "mine"):
            self.run_all()
        self.run_all()
        self.assertEqual(len(calls), 1, "it is not called again")
        self.assertEqual([event.kind for event in other], [1, 1, 1, 1, 2])

    def test_exceptions_that_end_programs(self):
        for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):

            def fail(event, kind=kind):
                raise kind

            self.engine.submit([1], fail, ignore_eos=True)
            with self.assertRaises(kind):
                self.run_all()
            self.run_all()

    def test_exceptions_come_out_of_poll_and_streams(self):
        def fail(event):
            raise KeyError(7)

        self.engine.submit([1], fail, ignore_eos=True)
        with self.assertRaises(KeyError):
            self.engine.poll(timeout=5)
        self.engine.submit([1], fail, ignore_eos=True)
        stream = self.engine.generate([2], max_tokens=3, ignore_eos=True)
        with self.assertRaises(KeyError):
            list(stream)
        self.assertEqual(stream.result().finish_reason, "length")
        # An event comes first.
        self.engine.submit([1], fail, ignore_eos=True)
        id = self.engine.submit([1], max_tokens=2, ignore_eos=True)
        self.assertEqual(self.engine.poll().request, id)
        with self.assertRaises(KeyError):
            self.engine.step()
        self.run_all()
        self.engine.poll(id), self.engine.poll(id)

    def test_the_library_in_callbacks(self):
        log = []

        def first(event):
            log.append(event.kind)
            if len(log) == 1:
                self.engine.load_adapter("a", golden.GOLDEN / "lora")
                self.engine.submit([4], log.append, adapters="a", max_tokens=2, ignore_eos=True)
                self.engine.step()
                self.assertEqual(self.engine.logits([1, 2])[0, 0], self.engine.logits([1])[0, 0])

        self.engine.submit([1], first, max_tokens=3, ignore_eos=True)
        self.run_all()
        self.assertEqual(sum(isinstance(entry, graftwork.Event) for entry in log), 3)

    def test_a_stream_in_a_callback(self):
        def nested(event):
            self.engine.generate([3], max_tokens=2).result()

        self.engine.submit([1], nested, max_tokens=3)
        with self.assertRaisesRegex(graftwork.Error, "callback"):
            self.run_all()
        self.run_all()

    def test_functions_are_let_go_of(self):
        class Function:
            def __call__(self, event):
                pass

        function = Function()
        gone = weakref.ref(function)
        self.engine.submit([1], function, max_tokens=1)
        del function
        self.assertIsNotNone(gone())
        self.run_all()
        gc.collect()
        self.assertIsNone(gone())
        function = Function()
        gone = weakref.ref(function)
        with self.assertRaises(graftwork.Error):
            self.engine.submit([], function)
        del function
        gc.collect()
        self.assertIsNone(gone())

    def test_an_engine_goes_with_its_last_reference(self):
        engine = graftwork.Engine(golden.BASE)
        stream = engine.generate([1], ignore_eos=True)
        next(stream)
        gone = weakref.ref(engine)
        del engine
        next(stream)
        del stream
        gc.collect()
        self.assertIsNone(gone())
        self.assertEqual(_callbacks.kept(), self.kept)

    def test_threads_submit_and_cancel(self):
        heard = [[] for _ in range(40)]

        def work(part):
            for i in part:
                id = self.engine.submit([i + 1], heard[i].append, max_tokens=30, ignore_eos=True)
                if i % 3 == 0:
                    try:
                        self.engine.cancel(id)
                    except graftwork.NotFoundError:
                        pass

        def step():
            while not all(events and events[-1].last for events in heard):
                self.engine.step()

        threads = [threading.Thread(target=work, args=(range(i, 40, 4),)) for i in range(4)]
        threads += [threading.Thread(target=step) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual([len([e for e in events if e.last]) for events in heard], [1] * 40)


if __name__ == "__main__":
    unittest.main()
