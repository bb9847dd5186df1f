"""Logits are those of peft; answers stream, stop and share batches."""

import threading
import unittest

import golden
import graftwork

ADAPTERS = ("lora", "lora_all", "lora_patterns", "dora", "loha", "ia3", "oft", "shira", "vera", "adalora")


class Logits(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.engine = graftwork.Engine(golden.BASE)
        for name in ADAPTERS:
            cls.engine.load_adapter(name, golden.GOLDEN / name)

    @classmethod
    def tearDownClass(cls):
        cls.engine.close()

    def compare(self, path, adapters):
        for tokens, wanted in golden.expected(path):
            found = golden.rows(self.engine.logits(tokens, adapters))
            self.assertEqual((len(found), len(found[0])), (len(tokens), 512))
            worst = max(abs(a - b) for f, w in zip(found, wanted) for a, b in zip(f, w))
            self.assertLess(worst, golden.TOLERANCE, path)

    def test_base_and_adapters(self):
        self.compare(golden.BASE / "expected.safetensors", ())
        for name in ADAPTERS:
            self.compare(golden.GOLDEN / name / "expected.safetensors", name)

    def test_weights_and_stacks(self):
        self.compare(golden.BASE / "expected.safetensors", {"lora": 0.0})
        self.compare(golden.GOLDEN / "stacks" / "lora+loha.safetensors", ["lora", ("loha", 1)])
        self.compare(golden.GOLDEN / "stacks" / "shira+lora.safetensors", {"shira": 1.0, "lora": 1.0})

    def test_wider_rows(self):
        with self.engine.load_adapter("resized", golden.GOLDEN / "resized") as adapter:
            with self.assertRaises(graftwork.InvalidArgError):
                self.engine.logits([1, 2], adapter)
            self.assertEqual(len(golden.rows(self.engine.logits([1, 2], adapter, width=517))[1]), 517)

    def test_logits_of_a_request(self):
        tokens, wanted = next(golden.expected(golden.BASE / "expected.safetensors"))
        answer = self.engine.generate(tokens, max_tokens=2, logits=True, logprobs=True, top_logprobs=3).result()
        first = golden.rows(answer.logits[0])
        self.assertLess(max(abs(a - b) for a, b in zip(first, wanted[-1])), golden.TOLERANCE)
        self.assertEqual(answer.tokens[0], max(range(512), key=first.__getitem__))
        self.assertEqual([len(top) for top in answer.top], [3, 3])
        self.assertEqual(answer.top[0][0].token, answer.tokens[0])
        self.assertAlmostEqual(answer.top[0][0].logprob, answer.logprobs[0], places=6)
        self.assertLess(answer.logprobs[0], 0)

    def test_without_tokens(self):
        with self.assertRaises(graftwork.Error):
            self.engine.logits([])


class Streams(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.engine = graftwork.Engine(golden.text_model())
        cls.engine.load_adapter("lora", golden.GOLDEN / "lora")
        cls.engine.load_adapter("all", golden.GOLDEN / "lora_all")

    @classmethod
    def tearDownClass(cls):
        cls.engine.close()

    def test_events(self):
        events = list(self.engine.generate("Once upon a time", max_tokens=8, ignore_eos=True))
        self.assertEqual([event.kind for event in events], [graftwork.GW_EVENT_TOKEN] * 8 + [graftwork.GW_EVENT_FINISHED])
        self.assertEqual(events[-1].finish_reason, "length")
        self.assertTrue(events[-1].last and not events[0].last)
        self.assertIsNone(events[-1].error)
        text = "".join(event.text for event in events)
        tokens = [event.token for event in events[:-1]]
        answer = self.engine.generate("Once upon a time", max_tokens=8, ignore_eos=True).result()
        self.assertEqual((answer.text, answer.tokens, answer.finish), (text, tokens, graftwork.GW_FINISH_LENGTH))
        self.assertEqual("".join(self.engine.generate("Once upon a time", max_tokens=8, ignore_eos=True).text()), text)
        request = graftwork.Request(text="Once upon a time", max_tokens=8, ignore_eos=True)
        self.assertEqual(self.engine.generate(request).result().tokens, tokens)
        self.assertEqual(self.engine.generate(request, max_tokens=3).result().tokens, tokens[:3])

    def test_prompts(self):
        messages = [{"role": "user", "content": "Hello <|im_end|>"}]
        tokens = self.engine.prompt_tokens(messages)
        self.assertEqual(tokens.count(2), 1, "a special token in a message is text")
        self.assertEqual(self.engine.prompt_tokens([("user", "Hello <|im_end|>")]), tokens)
        self.assertEqual(self.engine.prompt_tokens([graftwork.Message("user", "Hello <|im_end|>")]), tokens)
        text = self.engine.detokenize(tokens)
        self.assertTrue(text.endswith("Hello <|im_end|><|im_end|>\n<|im_start|>assistant\n"), text)
        chat = {"messages": messages, "add_generation_prompt": True, "extra": "!"}
        self.assertTrue(self.engine.detokenize(self.engine.prompt_tokens(chat)).endswith("assistant\n!"))
        self.assertEqual(self.engine.prompt_tokens((1, 2, 3)), [1, 2, 3])
        self.assertEqual(self.engine.prompt_tokens(range(3)), [0, 1, 2])
        self.assertEqual(self.engine.detokenize([]), "")
        self.assertEqual(self.engine.detokenize(self.engine.prompt_tokens("größer\0 🙂")), "größer\0 🙂")

    def test_one_batch(self):
        prompts = ["One", "Two", [7, 8, 9], [("user", "Hi")]]
        kinds = [(), "lora", ("all", 0.5), ["lora", "all"]]
        alone = [
            self.engine.generate(prompt, adapters=kind, max_tokens=12, ignore_eos=True).result().tokens
            for prompt in prompts
            for kind in kinds
        ]
        streams = [
            self.engine.generate(prompt, adapters=kind, max_tokens=12, ignore_eos=True)
            for prompt in prompts
            for kind in kinds
        ]
        self.assertEqual([stream.result().tokens for stream in streams], alone)
        self.assertGreater(len({tuple(tokens) for tokens in alone}), 8)

    def test_interleaved(self):
        streams = [self.engine.generate([i + 1], max_tokens=5, ignore_eos=True) for i in range(3)]
        kinds = [[event.kind for event in events] for events in zip(*streams)]
        self.assertEqual(kinds, [[1, 1, 1]] * 5 + [[2, 2, 2]])

    def test_threads(self):
        def tokens(i):
            return self.engine.generate([i, i + 1], adapters=("", "lora")[i % 2] or (), max_tokens=20).result().tokens

        alone = [tokens(i) for i in range(8)]
        found = [None] * 8

        def work(i):
            found[i] = tokens(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(found, alone)

    def test_options(self):
        def tokens(**options):
            return self.engine.generate([9, 8], max_tokens=10, ignore_eos=True, **options).result().tokens

        plain = tokens()
        self.assertNotIn(plain[0], tokens(logit_bias={plain[0]: float("-inf")}))
        self.assertEqual(tokens(logit_bias={77: 1e6}), [77] * 10)
        self.assertEqual(tokens(temperature=1.0, seed=3), tokens(temperature=1.0, seed=3))
        self.assertNotEqual(tokens(temperature=5.0, seed=3), tokens(temperature=5.0, seed=2**64 - 1))
        self.assertEqual(tokens(temperature=2.0, top_k=1), plain)
        self.assertEqual(tokens(temperature=2.0, top_p=1e-6), plain)
        self.assertEqual(tokens(temperature=2.0, min_p=1.0), plain)
        varied = tokens(repetition_penalty=2.0, presence_penalty=1, frequency_penalty=1.5, penalty_last_n=0xFFFFFFFF)
        self.assertEqual(len(set(varied)), 10)
        answer = self.engine.generate([9, 8], stop_tokens=[plain[2]], max_tokens=10, ignore_eos=True).result()
        self.assertEqual(answer.finish_reason, "stop")
        self.assertLessEqual(len(answer.tokens), 3)

    def test_stops(self):
        whole = self.engine.generate([9, 8], max_tokens=30, ignore_eos=True).result().text
        stop = whole[4:6]
        for stops in (stop, [stop], ["never seen", stop]):
            answer = self.engine.generate([9, 8], max_tokens=30, ignore_eos=True, stops=stops).result()
            self.assertEqual(answer.finish_reason, "stop_text")
            self.assertEqual(answer.text, whole[: whole.index(stop)])

    def test_closing_cancels(self):
        stream = self.engine.generate([1], ignore_eos=True)
        next(stream)
        stream.close()
        self.engine.step()
        self.assertEqual(list(stream), [])
        with self.engine.generate([1], ignore_eos=True) as stream:
            next(stream)
        for event in self.engine.generate([1], ignore_eos=True):
            break
        del event
        while self.engine.step():
            pass
        self.assertEqual(self.engine.memory().kv_used, 0)

    def test_cancel(self):
        stream = self.engine.generate([1], ignore_eos=True)
        next(stream)
        self.engine.cancel(stream.id)
        self.assertEqual(stream.result().finish_reason, "cancelled")
        with self.assertRaises(graftwork.NotFoundError):
            self.engine.cancel(stream.id)

    def test_poll(self):
        id = self.engine.submit([1, 2], max_tokens=2, ignore_eos=True)
        self.assertIsNone(self.engine.poll(timeout=0))
        kinds = [self.engine.poll(id).kind for _ in range(3)]
        self.assertEqual(kinds, [1, 1, 2])
        with self.assertRaises(graftwork.NotFoundError):
            self.engine.poll(id)
        self.assertIsNone(self.engine.poll(timeout=0.05))
        id = self.engine.submit([1, 2], max_tokens=1, ignore_eos=True)
        while self.engine.step():
            if self.engine.poll(timeout=0):
                break
        self.assertEqual(self.engine.poll().request, id)


class Adapters(unittest.TestCase):
    def test_generations(self):
        with graftwork.Engine(golden.BASE) as engine:
            adapter = engine.load_adapter("a", golden.GOLDEN / "lora")
            first = adapter.generation
            self.assertEqual((adapter.info.kind, adapter.info.generation), ("lora", first))
            self.assertEqual([info.name for info in engine.adapters()], ["a"])
            old = engine.generate([5, 6], adapters=adapter, max_tokens=8, ignore_eos=True)
            next(old)
            self.assertEqual(adapter.info.requests, 1)
            second = adapter.replace(golden.directory(golden.GOLDEN / "lora_all"))
            self.assertGreater(second, first)
            with self.assertRaises(graftwork.ConflictError) as caught:
                engine.replace_adapter("a", golden.GOLDEN / "lora", expected=first)
            self.assertEqual(caught.exception.detail, "a")
            with self.assertRaises(graftwork.ConflictError):
                engine.load_adapter("a", golden.GOLDEN / "lora")
            new = engine.generate([5, 6], adapters="a", max_tokens=8, ignore_eos=True).result()
            kept = [event.token for event in old][:-1]
            adapter.unload()
            self.assertEqual(engine.adapters(), [])
            with self.assertRaises(graftwork.NotFoundError):
                adapter.unload()
            for name, tokens in (("lora", kept), ("lora_all", new.tokens[1:])):
                with engine.load_adapter("b", golden.GOLDEN / name):
                    answer = engine.generate([5, 6], adapters={"b": 1}, max_tokens=8, ignore_eos=True).result()
                    self.assertEqual(answer.tokens[1:], tokens)
            self.assertEqual(engine.adapters(), [])
            engine.load_adapter("c", golden.GOLDEN / "lora")
            self.assertGreater(engine.replace_adapter("c", golden.GOLDEN / "dora"), second)


if __name__ == "__main__":
    unittest.main()
