// The C++ wrapper: what callbacks throw, prompts that are empty, handles that are moved. The first argument is the folder of models.
#include <graftwork.hpp>

#include <cstdio>
#include <cstdlib>

using graftwork::Engine;
using graftwork::Event;
using graftwork::Request;

namespace {

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                   \
        }                                                                                   \
    } while (false)

Request ask() {
    return Request::tokens({5, 6, 7, 8, 9, 10}).max_tokens(5).flags(GW_REQUEST_IGNORE_EOS);
}

// What comes out of step() until the engine has nothing to do.
std::vector<std::string> thrown_by(const Engine &engine) {
    std::vector<std::string> thrown;
    for (bool live = true; live;) try {
            live = engine.step();
        } catch (const std::runtime_error &error) {
            thrown.push_back(error.what());
        }
    return thrown;
}

// Once it threw, a callback is not called again: what it refers to may be gone with the function that submitted it.
void throws_once(const Engine &engine) {
    int calls = 0;
    engine.submit(ask().on_event([&](const Event &) {
        ++calls;
        throw std::runtime_error("once");
    }));
    CHECK(thrown_by(engine) == std::vector<std::string>{"once"});
    CHECK(calls == 1);
}

// What one callback throws does not come out inside of another that steps.
void throws_past_others(const Engine &engine) {
    int tokens = 0, finish = 0;
    engine.submit(ask().on_event([](const Event &) { throw std::runtime_error("from the first"); }));
    engine.submit(ask().on_event([&](const Event &event) {
        if (event.last()) finish = event->finish;
        else ++tokens;
        engine.step();
    }));
    CHECK(thrown_by(engine) == std::vector<std::string>{"from the first"});
    CHECK(tokens == 5 && finish == GW_FINISH_LENGTH);
}

// What is kept for an engine comes out of no other.
void throws_from_its_own_engine(const graftwork::Source &source, const Engine &other) {
    {
        const Engine engine(source);
        engine.submit(ask().on_event([](const Event &) { throw std::runtime_error("unseen"); }));
        const auto polled = engine.submit(ask());
        for (bool last = false; !last;) try {
                last = engine.poll(polled).last();
            } catch (const std::runtime_error &) {
            }
        engine.submit(ask().on_event([](const Event &) { throw std::runtime_error("unseen"); }));
    }
    CHECK(thrown_by(other).empty());
}

// An empty prompt is a prompt, as in C.
void takes_empty_prompts(const Engine &engine) {
    for (const Request &request : {Request::text(""), Request::chat({}), Request::tokens({})}) {
        gw_request c = GW_REQUEST_INIT;
        request.with_c([&](const gw_request &made) { return c = made, 0; });
        CHECK((c.text != nullptr) + (c.tokens != nullptr) + (c.messages != nullptr) + (c.chat_json != nullptr) == 1);
    }
    CHECK(engine.prompt_tokens(Request::text("")).empty());
    try {
        engine.submit(Request::tokens({}));
        CHECK(false);
    } catch (const graftwork::Error &error) {
        CHECK(error.status() == GW_ERR_INVALID_ARG && error.detail() == "prompt");
    }
}

// Threads that a callback lends: answers are the same, whatever becomes of the tasks.
void borrows(const graftwork::Source &source, const Engine &other) {
    const auto answer = [](const Engine &engine) {
        std::vector<std::uint32_t> tokens;
        engine.submit(ask().on_event([&](const Event &event) {
            if (!event.last()) tokens.push_back(event->token);
        }));
        while (engine.step()) {
        }
        return tokens;
    };
    const auto expected = answer(other);
    CHECK(expected.size() == 5);
    auto given = std::make_shared<int>(0);
    for (int way = 0; way < 4; ++way) {
        std::vector<std::thread> threads;
        std::vector<std::function<void()>> kept;
        *given = 0;
        {
            graftwork::EngineOptions options;
            options.threads = 3;
            options.on_execute = [&, given](std::function<void()> task) {
                ++*given;
                if (way == 0) threads.emplace_back(std::move(task));
                if (way == 1) throw std::runtime_error("no thread");
                if (way == 2) kept.push_back(std::move(task));
            };
            const Engine engine(source, options);
            CHECK(answer(engine) == expected);
            CHECK(*given >= 10 && *given % 2 == 0);
        }
        // The engine is gone.
        for (const auto &task : kept) task(), task();
        for (auto &thread : threads) thread.join();
    }
    CHECK(given.use_count() == 1);
}

// A request that is saved goes on in another engine, where the adapter has another name, and its callback is let go of.
void saves(const std::string &folder, const graftwork::Source &source, const Engine &engine) {
    const auto lora = graftwork::Source::path(folder + "/lora");
    engine.load("first", lora);
    const Request request = ask().max_tokens(9).adapter("first");
    std::vector<std::uint32_t> whole, rest;
    const auto listen = [](const Engine &from, std::uint64_t id, std::vector<std::uint32_t> &to, std::size_t most) {
        while (to.size() < most) {
            const Event event = from.poll(id);
            if (event.last()) return;
            to.push_back(event->token);
        }
    };
    const std::uint64_t id = engine.submit(request);
    listen(engine, id, whole, 4);
    graftwork::State state = engine.save(id), moved(std::move(state));
    CHECK(state.data() == nullptr && state.size() == 0 && moved.size() > 0);
    listen(engine, id, whole, 100);
    CHECK(whole.size() == 9);

    const Engine other(source);
    try {
        other.resume(graftwork::Source::copy(moved.data(), moved.size()));
        CHECK(false);
    } catch (const graftwork::Error &error) {
        CHECK(error.status() == GW_ERR_FORMAT);
    }
    other.load("second", lora);
    listen(other, other.resume(graftwork::Source::copy(moved.data(), moved.size())), rest, 100);
    CHECK(rest == std::vector<std::uint32_t>(whole.begin() + 4, whole.end()));
    const std::string path = "/tmp/graftwork-wrapper-" + std::to_string(reinterpret_cast<std::uintptr_t>(&other));
    moved.write(path);
    rest.clear();
    auto kept = std::make_shared<int>(0);
    other.resume(graftwork::Source::path(path), [&rest, kept](const Event &event) {
        if (!event.last()) rest.push_back(event->token);
        else if (++*kept) throw std::runtime_error("at the end");
    });
    CHECK(std::remove(path.c_str()) == 0);
    CHECK(kept.use_count() == 2);
    CHECK(thrown_by(other) == std::vector<std::string>{"at the end"});
    CHECK(rest == std::vector<std::uint32_t>(whole.begin() + 4, whole.end()));
    CHECK(*kept == 1 && kept.use_count() == 1);

    // One whose callback throws at once.
    other.resume(graftwork::Source::copy(moved.data(), moved.size()), [kept](const Event &) { throw std::runtime_error("no"); });
    CHECK(thrown_by(other) == std::vector<std::string>{"no"} && kept.use_count() == 1);
    engine.unload("first");
}

// Options, and what is known of adapters.
void fields(const std::string &folder, const graftwork::Source &source) {
    graftwork::EngineOptions options;
    options.threads = 1;
    options.adapter_bytes = 1 << 30;
    const Engine engine(source, options);
    CHECK(engine.memory().adapters_limit == 1 << 30);
    engine.load("a", graftwork::Source::path(folder + "/lora"));
    engine.pin("a");
    CHECK(engine.adapter("a").resident && engine.adapter("a").pinned && engine.adapter("a").loads == 1);
    engine.pin("a", false);
    CHECK(!engine.adapter("a").pinned);
    gw_request c = GW_REQUEST_INIT;
    ask().context(GW_CONTEXT_SHIFT).keep(3).with_c([&](const gw_request &made) { return c = made, 0; });
    CHECK(c.context == GW_CONTEXT_SHIFT && c.keep == 3);
}

void moves(Engine engine) {
    Engine second(std::move(engine));
    Engine &same = second;
    second = std::move(same);
    CHECK(second.info().vocab == 512);
    try {
        engine.step();
        CHECK(false);
    } catch (const graftwork::Error &error) {
        CHECK(error.status() == GW_ERR_INVALID_ARG);
    }
}

} // namespace

int main(int count, char **arguments) {
    CHECK(count > 1);
    const auto source = graftwork::Source::path(std::string(arguments[1]) + "/model");
    const Engine engine(source);
    throws_once(engine);
    throws_past_others(engine);
    throws_from_its_own_engine(source, engine);
    takes_empty_prompts(engine);
    borrows(source, engine);
    saves(arguments[1], source, engine);
    fields(arguments[1], source);
    moves(Engine(source));
}
