"""Errors carry kind, message and detail; what makes no sense is refused before it reaches C."""

import io
import math
import pickle
import unittest

import golden
import graftwork
from graftwork import _callbacks


class Errors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.engine = graftwork.Engine(golden.text_model(), kv_bytes=1 << 17)
        cls.kept = _callbacks.kept()

    @classmethod
    def tearDownClass(cls):
        cls.engine.close()

    def tearDown(self):
        self.assertEqual(_callbacks.kept(), self.kept)

    def refused(self, kind, call, detail=None):
        with self.assertRaises(kind) as caught:
            call()
        error = caught.exception
        self.assertIs(type(error), kind)
        self.assertEqual(getattr(graftwork, error.kind), error.status)
        self.assertTrue(error.message)
        self.assertEqual(str(error), error.message)
        if detail is not None:
            self.assertEqual(error.detail, detail)
        copy = pickle.loads(pickle.dumps(error))
        self.assertEqual((copy.kind, copy.message, copy.detail), (error.kind, error.message, error.detail))
        return error

    def test_kinds(self):
        engine, lora = self.engine, golden.GOLDEN / "lora"
        self.refused(graftwork.NotFoundError, lambda: graftwork.Engine("/no/such/file"))
        self.refused(graftwork.NotFoundError, lambda: engine.generate([1], adapters="x"), "x")
        self.refused(graftwork.NotFoundError, lambda: engine.adapter("x"), "x")
        self.refused(graftwork.NotFoundError, lambda: engine.unload_adapter("x"), "x")
        self.refused(graftwork.NotFoundError, lambda: engine.replace_adapter("x", lora), "x")
        self.refused(graftwork.NotFoundError, lambda: engine.poll(1 << 40))
        self.refused(graftwork.FormatError, lambda: graftwork.Engine(golden.REPOSITORY / "Cargo.toml"))
        self.refused(graftwork.FormatError, lambda: graftwork.Engine(b"GGUF\3\0\0\0"))
        self.refused(graftwork.UnsupportedError, lambda: engine.generate([1], grammar="x"), "grammar")
        self.refused(graftwork.BudgetError, lambda: engine.generate([1], max_tokens=500))
        self.refused(graftwork.InvalidArgError, lambda: engine.generate([]))
        self.refused(graftwork.InvalidArgError, lambda: engine.generate([512]))
        self.refused(graftwork.InvalidArgError, lambda: engine.generate([1], temperature=-1))
        self.refused(graftwork.InvalidArgError, lambda: engine.generate([1], temperature=math.nan))
        self.refused(graftwork.InvalidArgError, lambda: engine.generate([1], temperature=1e300))
        self.refused(graftwork.InvalidArgError, lambda: engine.generate([1], top_p=2))
        self.refused(graftwork.InvalidArgError, lambda: engine.generate(graftwork.Request()))
        self.refused(graftwork.InvalidArgError, lambda: engine.generate(graftwork.Request(text="a", tokens=[1])))
        self.refused(graftwork.InvalidArgError, lambda: engine.submit([1], adapters={"": math.inf}))
        with engine.load_adapter("a", lora):
            self.refused(graftwork.ConflictError, lambda: engine.load_adapter("a", lora), "a")
            self.refused(graftwork.InvalidArgError, lambda: engine.generate([1], adapters=("a", math.nan)))
        config = (lora / "adapter_config.json").read_bytes()
        weights = (lora / "adapter_model.safetensors").read_bytes()
        broken = {"adapter_config.json": config, "adapter_model.safetensors": weights[:-8]}
        self.refused(graftwork.FormatError, lambda: engine.load_adapter("b", broken))
        strange = {"adapter_config.json": config.replace(b'"LORA"', b'"XYZ"'), "adapter_model.safetensors": weights}
        self.refused(graftwork.UnsupportedError, lambda: engine.load_adapter("b", strange))
        wrong = {
            "adapter_config.json": config,
            "adapter_model.safetensors": weights.replace(b"layers.1.", b"layers.9."),
        }
        self.refused(graftwork.IncompatibleAdapterError, lambda: engine.load_adapter("b", wrong))
        self.assertEqual(engine.adapters(), [])

    def test_families(self):
        self.assertTrue(issubclass(graftwork.InvalidArgError, ValueError))
        self.assertTrue(issubclass(graftwork.NotFoundError, LookupError))
        self.assertTrue(issubclass(graftwork.OutOfMemoryError, MemoryError))
        self.assertTrue(issubclass(graftwork.ClosedError, graftwork.InvalidArgError))

    def test_types(self):
        engine = self.engine
        calls = [
            lambda: graftwork.Engine(None),
            lambda: graftwork.Engine(3),
            lambda: graftwork.Engine({"a": None}),
            lambda: graftwork.Engine({3: b""}),
            lambda: graftwork.Engine(golden.BASE, thread=1),
            lambda: graftwork.Engine(golden.BASE, threads="2"),
            lambda: graftwork.Engine(golden.BASE, threads=1.5),
            lambda: graftwork.Engine(golden.BASE, log=3),
            lambda: graftwork.Engine(golden.BASE, progress="x"),
            lambda: engine.generate(None),
            lambda: engine.generate(3),
            lambda: engine.generate(b"text"),
            lambda: engine.generate([1, "2"]),
            lambda: engine.generate([1.5]),
            lambda: engine.generate([None]),
            lambda: engine.generate([("user", 3)]),
            lambda: engine.generate([("user", "a", "b")]),
            lambda: engine.generate([{"role": "user"}]),
            lambda: engine.generate([{"role": "user", "content": "x", "name": "y"}]),
            lambda: engine.generate([("user", "a"), 3]),
            lambda: engine.generate("a", max_token=3),
            lambda: engine.generate("a", max_tokens="3"),
            lambda: engine.generate("a", max_tokens=2.5),
            lambda: engine.generate("a", temperature="1"),
            lambda: engine.generate("a", temperature=[1]),
            lambda: engine.generate("a", stops=3),
            lambda: engine.generate("a", stops=[3]),
            lambda: engine.generate("a", stops=[b"x"]),
            lambda: engine.generate("a", stop_tokens="ab"),
            lambda: engine.generate("a", stop_tokens=b"ab"),
            lambda: engine.generate("a", adapters=3),
            lambda: engine.generate("a", adapters=[3]),
            lambda: engine.generate("a", adapters=b"x"),
            lambda: engine.generate("a", adapters={"x": "1"}),
            lambda: engine.generate("a", adapters={"x": None}),
            lambda: engine.generate("a", logit_bias={"x": 1}),
            lambda: engine.generate("a", logit_bias=[1]),
            lambda: engine.submit("a", 3),
            lambda: engine.generate("a", grammar=3),
            lambda: engine.load_adapter(None, golden.GOLDEN / "lora"),
            lambda: engine.load_adapter("a", None),
            lambda: engine.load_adapter("a"),
            lambda: engine.cancel("1"),
            lambda: engine.cancel(None),
            lambda: engine.poll("1"),
            lambda: engine.logits("abc"),
            lambda: engine.logits(None),
            lambda: engine.detokenize(b"abc"),
            lambda: graftwork.has_feature(3),
            lambda: graftwork.Source.path(3),
            lambda: graftwork.Source.fd("x"),
            lambda: engine.generate({"messages": {1, 2}}),
        ]
        for i, call in enumerate(calls):
            with self.subTest(i), self.assertRaises(TypeError):
                call()

    def test_values(self):
        engine = self.engine
        calls = [
            lambda: engine.generate([-1]),
            lambda: engine.generate([1 << 32]),
            lambda: engine.generate([1], max_tokens=-1),
            lambda: engine.generate([1], max_tokens=1 << 64),
            lambda: engine.generate([1], seed=-1),
            lambda: engine.generate([1], top_k=1 << 32),
            lambda: engine.generate([1], logit_bias={-1: 1}),
            lambda: engine.generate("\ud800"),
            lambda: engine.generate("a", stops=["\udfff"]),
            lambda: engine.cancel(-1),
            lambda: engine.logits([1], width=-5),
            lambda: engine.logits([1 << 33]),
            lambda: engine.load_adapter("\ud800", b""),
            lambda: engine.replace_adapter("a", b"", expected=-1),
            lambda: graftwork.Source.fd(-1),
            lambda: graftwork.Source.fd(0, -1),
            lambda: engine.detokenize([1 << 20]),
            lambda: engine.generate({}),
            lambda: engine.generate(graftwork.Request(chat_json="{")),
            lambda: graftwork.Engine({"../a": b""}),
            lambda: graftwork.Engine(b""),
            lambda: graftwork.Engine({}),
            lambda: graftwork.Engine("a\0b"),
        ]
        for i, call in enumerate(calls):
            with self.subTest(i), self.assertRaises(graftwork.Error):
                call()

    def test_files_that_cannot_be_read(self):
        files = golden.directory(golden.BASE)

        class Broken(io.BytesIO):
            def read(self, *arguments):
                raise ZeroDivisionError

        class Short(io.BytesIO):
            def seek(self, offset, whence=0):
                return super().seek(offset, whence) + (10 if whence else 0)

        for kind, error in ((Broken, ZeroDivisionError), (Short, EOFError)):
            with self.assertRaises(error):
                graftwork.Engine({**files, "model.safetensors": kind(files["model.safetensors"])})

    def test_an_event_that_failed(self):
        event = graftwork.Event(graftwork.GW_EVENT_FAILED, 1, "", status=graftwork.GW_ERR_BUDGET, message="too much")
        self.assertIsInstance(event.error, graftwork.BudgetError)
        self.assertEqual(str(event.error), "too much")

    def test_half_made_objects_can_go(self):
        for kind in (graftwork.Engine, graftwork.Stream, graftwork.AsyncStream, graftwork.Source):
            kind.__new__(kind).__del__()


if __name__ == "__main__":
    unittest.main()
