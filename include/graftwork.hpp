// graftwork.hpp: graftwork.h for C++17. Header-only; graftwork.h describes what everything means.
//
//     graftwork::Engine engine(graftwork::Source::path("model.gguf"));
//     engine.submit(graftwork::Request::chat({{"user", "Why is the sky blue?"}})
//                       .max_tokens(48)
//                       .on_event([](const graftwork::Event &event) { std::cout << event.text() << std::flush; }));
//     while (engine.step()) {}
//
// Handles are move-only and free what they hold. Failures are thrown as graftwork::Error, by everything that is not
// marked noexcept; that includes the use of a Source or an Engine that was moved from.
//
// Callbacks are anything that can be called and copied. A request that is submitted has its own copy, destroyed after
// its last event. A callback may throw: its request is then cancelled, the callback is not called again, and the
// exception comes out of the step() or poll() that called it. (If that poll() has an event to return as well, it
// returns the event, and the exception comes out of the engine's next step() or poll() in that thread. Of several
// exceptions, the first is kept.)
//
// Threads. Const member functions may be called from several threads at once, as in C.

#ifndef GRAFTWORK_HPP
#define GRAFTWORK_HPP

#include "graftwork.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace graftwork {

namespace internal {

struct Free {
    void operator()(gw_error *handle) const noexcept { gw_error_free(&handle); }
    void operator()(gw_source *handle) const noexcept { gw_source_free(&handle); }
    void operator()(gw_engine *handle) const noexcept { gw_engine_close(&handle); }
    void operator()(gw_adapters *handle) const noexcept { gw_adapters_free(&handle); }
    void operator()(gw_event *handle) const noexcept { gw_event_free(&handle); }
    void operator()(gw_state *handle) const noexcept { gw_state_free(&handle); }
};

template <class T> using Handle = std::unique_ptr<T, Free>;

// A gw_drop_fn for what was made by `new T`.
template <class T> void drop(void *user) noexcept { delete static_cast<T *>(user); }

} // namespace internal

// Why a call failed. what() is the message, for people.
class Error : public std::runtime_error {
public:
    // Takes over `error`, which may be NULL.
    Error(gw_status status, gw_error *error) : Error(status, internal::Handle<gw_error>(error)) {}

    gw_status status() const noexcept { return status_; }
    // The tensor, key, option, file or adapter that it is about; "" if it is about none.
    const std::string &detail() const noexcept { return detail_; }

private:
    Error(gw_status status, const internal::Handle<gw_error> &error)
        : std::runtime_error(error ? gw_error_message(error.get(), nullptr) : gw_status_name(status)), status_(status),
          detail_(error ? gw_error_detail(error.get(), nullptr) : "") {}

    gw_status status_;
    std::string detail_;
};

namespace internal {

// Calls a function whose last parameter is a gw_error **.
template <class Function, class... Arguments> void call(Function *function, Arguments... arguments) {
    gw_error *error = nullptr;
    const gw_status status = function(arguments..., &error);
    if (status != GW_OK) throw Error(status, error);
}

// Calls a function whose last parameters are a T ** and a gw_error **.
template <class T, class Function, class... Arguments> Handle<T> make(Function *function, Arguments... arguments) {
    T *handle = nullptr;
    call(function, arguments..., &handle);
    return Handle<T>(handle);
}

// Runs a callback for C: keeps what it throws, unless something is kept already, and says whether it threw.
template <class Function> std::int32_t guard(std::exception_ptr &thrown, Function &&function) noexcept {
    try {
        function();
        return 0;
    } catch (...) {
        if (!thrown) thrown = std::current_exception();
        return 1;
    }
}

// A gw_task_fn with its task, run once: when it is first called, or else when it goes.
class Task {
public:
    Task(gw_task_fn run, void *task) : run_(run), task_(task) {}
    Task(const Task &) = delete;
    ~Task() { (*this)(); }
    void operator()() noexcept {
        if (void *task = task_.exchange(nullptr)) run_(task);
    }

private:
    const gw_task_fn run_;
    std::atomic<void *> task_;
};

// What the callbacks of an engine threw, by thread, until the step() or poll() of that thread throws it.
class Thrown {
public:
    // What is kept for this thread, which then has nothing.
    std::exception_ptr take() noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto &[thread, exception] : kept_)
            if (thread == std::this_thread::get_id()) return std::exchange(exception, nullptr);
        return nullptr;
    }
    void keep(std::exception_ptr exception) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto &[thread, place] : kept_)
            if (thread == std::this_thread::get_id() || !place) {
                thread = std::this_thread::get_id(), place = std::move(exception);
                return;
            }
        kept_.emplace_back(std::this_thread::get_id(), std::move(exception));
    }

private:
    std::mutex mutex_;
    std::vector<std::pair<std::thread::id, std::exception_ptr>> kept_;
};

// `thrown` is null where the engine was moved away.
inline void rethrow(const std::shared_ptr<Thrown> &thrown) {
    if (std::exception_ptr exception = thrown ? thrown->take() : nullptr) std::rethrow_exception(exception);
}

} // namespace internal

// Whether the library has a capability, such as "lora" or "gguf".
inline bool has_feature(std::string_view name) noexcept { return gw_has_feature(name.data(), name.size()) != 0; }

// ------------------------------------------------------------------------------------------------------------ Sources

// Where a model or an adapter comes from. `flags` are 0 or GW_SOURCE_COPY.
class Source {
public:
    // A file or a directory.
    static Source path(std::string_view path, std::uint32_t flags = 0) {
        return Source(internal::make<gw_source>(gw_source_path, path.data(), path.size(), flags));
    }

    // A part of an open file; length 0 stands for all up to the end.
    static Source fd(std::int32_t fd, std::uint64_t offset = 0, std::uint64_t length = 0, std::uint32_t flags = 0) {
        return Source(internal::make<gw_source>(gw_source_fd, fd, offset, length, flags));
    }

    // Bytes in memory, copied.
    static Source copy(const void *data, std::size_t size) {
        return Source(internal::make<gw_source>(gw_source_memory, data, size, GW_SOURCE_COPY, nullptr, nullptr));
    }

    // Bytes in memory that stay where they are. `owner` keeps them there, and is let go of on any thread.
    static Source memory(const void *data, std::size_t size, std::shared_ptr<const void> owner) {
        using Owner = std::shared_ptr<const void>;
        auto user = std::make_unique<Owner>(std::move(owner));
        Source source(internal::make<gw_source>(gw_source_memory, data, size, 0u, &internal::drop<Owner>,
                                                static_cast<void *>(user.get())));
        user.release(); // The library has it.
        return source;
    }

    // A file of `length` bytes that `read(offset, buffer, size)` reads before this returns. What it throws, this throws.
    template <class Read> static Source reader(std::uint64_t length, Read &&read) {
        struct State {
            Read &read;
            std::exception_ptr thrown;
        } state{read, nullptr};
        gw_reader reader = GW_READER_INIT;
        reader.length = length;
        reader.user = &state;
        reader.read = [](void *user, std::uint64_t offset, void *buffer, std::size_t size) noexcept -> std::int32_t {
            auto &into = *static_cast<State *>(user);
            return internal::guard(into.thrown, [&] { into.read(offset, buffer, size); });
        };
        try {
            return Source(internal::make<gw_source>(gw_source_reader, &reader));
        } catch (const Error &) {
            if (state.thrown) std::rethrow_exception(state.thrown);
            throw;
        }
    }

    // An empty directory in memory, to add files to.
    static Source directory() { return Source(internal::make<gw_source>(gw_source_directory)); }

    // Adds a file to a directory in memory.
    Source &add(std::string_view name, const Source &file) {
        internal::call(gw_source_add, handle_.get(), name.data(), name.size(), file.get());
        return *this;
    }

    const gw_source *get() const noexcept { return handle_.get(); }

private:
    explicit Source(internal::Handle<gw_source> handle) noexcept : handle_(std::move(handle)) {}

    internal::Handle<gw_source> handle_;
};

// ------------------------------------------------------------------------------------------------------------- States

// A request as it was between two tokens, to go on later: see Engine::save and Engine::resume.
class State {
public:
    // Takes over a state, or NULL.
    explicit State(internal::Handle<gw_state> handle) noexcept : handle_(std::move(handle)) {}

    // Its bytes, which live as long as it.
    const void *data() const noexcept { return gw_state_data(get(), nullptr); }
    std::size_t size() const noexcept {
        std::size_t size = 0;
        gw_state_data(get(), &size);
        return size;
    }
    // Writes them to a file: whole, in place of what is there, or not at all.
    void write(std::string_view path) const { internal::call(gw_state_write, get(), path.data(), path.size()); }

    const gw_state *get() const noexcept { return handle_.get(); }

private:
    internal::Handle<gw_state> handle_;
};

// ------------------------------------------------------------------------------------------------------------- Events

// What happened to a request; empty if poll() had nothing to tell.
class Event {
public:
    // Takes over an event, or NULL.
    explicit Event(internal::Handle<gw_event> handle) noexcept : event_(handle.release(), Release{true}) {}
    // An event that the library holds, as long as it does.
    explicit Event(const gw_event *event) noexcept : event_(event, Release{false}) {}

    explicit operator bool() const noexcept { return event_ != nullptr; }

    std::uint64_t request() const noexcept { return event_->request; }
    // The next piece of the answer.
    std::string_view text() const noexcept { return {event_->text, event_->text_size}; }
    // Whether nothing follows.
    bool last() const noexcept { return event_->kind != GW_EVENT_TOKEN; }
    bool failed() const noexcept { return event_->kind == GW_EVENT_FAILED; }
    // Why the request failed.
    std::string_view message() const noexcept { return {event_->message, event_->message_size}; }
    // All fields: token, finish, status, logprob, top, logits.
    const gw_event *operator->() const noexcept { return event_.get(); }

private:
    struct Release {
        bool owned;
        void operator()(const gw_event *event) const noexcept {
            if (owned) internal::Free()(const_cast<gw_event *>(event));
        }
    };

    std::unique_ptr<const gw_event, Release> event_;
};

// ----------------------------------------------------------------------------------------------------------- Requests

// One message of a conversation.
struct Message {
    std::string role; // Such as "system", "user", "assistant".
    std::string content;
};

// An adapter of a request, and how much of it.
struct Use {
    std::string name;
    float weight = 1;
};

// One request: what it asks, and how it wants to be answered. May be submitted any number of times.
class Request {
public:
    using OnEvent = std::function<void(const Event &)>;

    // A text to go on with.
    static Request text(std::string text) { return Request(Prompt::text, &Request::string_, std::move(text)); }
    static Request tokens(std::vector<std::uint32_t> tokens) {
        return Request(Prompt::tokens, &Request::tokens_, std::move(tokens));
    }
    // A conversation to be answered.
    static Request chat(std::vector<Message> messages) {
        return Request(Prompt::messages, &Request::messages_, std::move(messages));
    }
    // A conversation with tools, documents and whatever else the model's template may know.
    static Request chat_json(std::string json) {
        return Request(Prompt::chat_json, &Request::string_, std::move(json));
    }

    // Adapters answer in the order in which they are added.
    Request &adapter(std::string name, float weight = 1) {
        return adapters_.push_back({std::move(name), weight}), *this;
    }
    Request &stop(std::string text) { return stops_.push_back(std::move(text)), *this; }
    Request &stop_token(std::uint32_t token) { return stop_tokens_.push_back(token), *this; }
    Request &logit_bias(std::uint32_t token, float bias) { return biases_.push_back({token, bias}), *this; }

    Request &max_tokens(std::uint64_t count) { return set(&gw_request::max_tokens, count); }
    Request &seed(std::uint64_t seed) { return set(&gw_request::seed, seed); }
    Request &temperature(float value) { return set(&gw_request::temperature, value); }
    Request &top_k(std::uint32_t count) { return set(&gw_request::top_k, count); }
    Request &top_p(float share) { return set(&gw_request::top_p, share); }
    Request &min_p(float share) { return set(&gw_request::min_p, share); }
    Request &repetition_penalty(float factor) { return set(&gw_request::repetition_penalty, factor); }
    Request &presence_penalty(float value) { return set(&gw_request::presence_penalty, value); }
    Request &frequency_penalty(float value) { return set(&gw_request::frequency_penalty, value); }
    Request &penalty_last_n(std::uint32_t count) { return set(&gw_request::penalty_last_n, count); }
    // GW_REQUEST_IGNORE_EOS, GW_REQUEST_LOGPROBS, GW_REQUEST_LOGITS.
    Request &flags(std::uint32_t flags) { return set(&gw_request::flags, flags); }
    Request &top_logprobs(std::uint32_t count) { return set(&gw_request::top_logprobs, count); }
    // GW_CONTEXT_...
    Request &context(std::uint32_t policy) { return set(&gw_request::context, policy); }
    // With GW_CONTEXT_SHIFT: how many of the prompt's tokens always stay.
    Request &keep(std::uint64_t count) { return set(&gw_request::keep, count); }

    // Hears each event. Without, events wait for Engine::poll.
    Request &on_event(OnEvent function) { return on_event_ = std::move(function), *this; }

    // Calls `function` with the gw_request that this is, callback apart; it lives until `function` returns.
    template <class Function> auto with_c(Function &&function) const {
        std::vector<gw_message> messages;
        for (const Message &m : messages_)
            messages.push_back({m.role.data(), m.role.size(), m.content.data(), m.content.size()});
        std::vector<gw_use> uses;
        for (const Use &use : adapters_) uses.push_back({use.name.data(), use.name.size(), use.weight, 0});
        std::vector<gw_text> stops;
        for (const std::string &stop : stops_) stops.push_back({stop.data(), stop.size()});

        gw_request request = fields_;
        // The one that was given, also if it is empty, when a vector may have no address.
        static constexpr std::uint32_t no_token = 0;
        static constexpr gw_message no_message = {"", 0, "", 0};
        switch (prompt_) {
        case Prompt::text: request.text = string_.data(), request.text_size = string_.size(); break;
        case Prompt::chat_json: request.chat_json = string_.data(), request.chat_json_size = string_.size(); break;
        case Prompt::tokens:
            request.tokens = tokens_.empty() ? &no_token : tokens_.data(), request.token_count = tokens_.size();
            break;
        case Prompt::messages:
            request.messages = messages.empty() ? &no_message : messages.data();
            request.message_count = messages.size();
            break;
        }
        request.adapters = uses.data(), request.adapter_count = uses.size();
        request.stops = stops.data(), request.stop_count = stops.size();
        request.stop_tokens = stop_tokens_.data(), request.stop_token_count = stop_tokens_.size();
        request.logit_bias = biases_.data(), request.logit_bias_count = biases_.size();
        return function(request);
    }

    const OnEvent &callback() const noexcept { return on_event_; }

private:
    enum class Prompt { text, tokens, messages, chat_json };

    template <class T> Request(Prompt prompt, T Request::*place, T value) : prompt_(prompt) {
        this->*place = std::move(value);
    }
    template <class T> Request &set(T gw_request::*field, T value) { return fields_.*field = value, *this; }

    Prompt prompt_;
    std::string string_; // A text, or JSON.
    std::vector<std::uint32_t> tokens_, stop_tokens_;
    std::vector<Message> messages_;
    std::vector<Use> adapters_;
    std::vector<std::string> stops_;
    std::vector<gw_logit_bias> biases_;
    OnEvent on_event_;
    gw_request fields_ = GW_REQUEST_INIT; // The plain ones.
};

// ------------------------------------------------------------------------------------------------------------ Engines

// The fields of gw_engine_options, with callbacks in place of its own.
struct EngineOptions : gw_engine_options {
    EngineOptions() noexcept : gw_engine_options GW_ENGINE_OPTIONS_INIT {}

    // Hears a level and a message, on any thread. What it throws is lost.
    std::function<void(std::int32_t, std::string_view)> on_log;
    // Hears how many parts of how many are loaded, on any thread, one call at a time. What it throws ends the loading
    // and comes out of Engine's constructor.
    std::function<void(std::uint64_t, std::uint64_t)> on_progress;
    // Lends the threads that compute, all but the one that steps: passes the function that it gets on to another thread,
    // which calls it once and soon. What it throws is lost, and the task with it. See gw_execute_fn.
    std::function<void(std::function<void()>)> on_execute;
};

// An adapter as it was when it was listed.
struct Adapter {
    std::string name;
    std::string kind;
    std::uint64_t generation;
    std::uint64_t sites;    // Places of the model that it changes.
    std::uint64_t bytes;    // That it takes while it is in memory.
    std::uint64_t requests; // That use it or wait for it.
    bool resident;          // It is in memory.
    bool pinned;            // It stays there.
    std::uint64_t loads;    // How many times it came into memory.
};

// One model, its adapters, and everybody's requests.
class Engine {
public:
    explicit Engine(const Source &source, EngineOptions options = {}) {
        using Log = decltype(options.on_log);
        auto log = std::make_unique<Log>(std::move(options.on_log));
        if (*log) {
            options.log_user = log.get();
            options.log_drop = &internal::drop<Log>;
            options.log = [](void *user, std::int32_t level, const char *message, std::size_t size) noexcept {
                std::exception_ptr lost;
                internal::guard(lost, [&] { (*static_cast<Log *>(user))(level, {message, size}); });
            };
        }
        using Execute = decltype(options.on_execute);
        auto execute = std::make_unique<Execute>(std::move(options.on_execute));
        if (*execute) {
            options.execute_user = execute.get();
            options.execute_drop = &internal::drop<Execute>;
            options.execute = [](void *user, gw_task_fn run, void *task) noexcept {
                std::exception_ptr lost;
                internal::guard(lost, [&] {
                    auto once = std::make_shared<internal::Task>(run, task);
                    (*static_cast<Execute *>(user))([once] { (*once)(); });
                });
            };
        }
        struct Progress {
            decltype(options.on_progress) function;
            std::mutex mutex;
            std::exception_ptr thrown;
        } progress{std::move(options.on_progress), {}, nullptr};
        if (progress.function) {
            options.progress_user = &progress;
            options.progress = [](void *user, std::uint64_t done, std::uint64_t all) noexcept -> std::int32_t {
                auto &state = *static_cast<Progress *>(user);
                const std::lock_guard<std::mutex> lock(state.mutex);
                return internal::guard(state.thrown, [&] { state.function(done, all); });
            };
        }
        try {
            const gw_engine_options *const c = &options;
            handle_ = internal::make<gw_engine>(gw_engine_open, source.get(), c);
        } catch (const Error &) {
            if (progress.thrown) std::rethrow_exception(progress.thrown);
            throw;
        }
        // The library has them.
        if (options.log_user == log.get()) log.release();
        if (options.execute_user == execute.get()) execute.release();
    }

    // The memory that opening would take.
    static gw_memory plan(const Source &source, const EngineOptions &options = {}) {
        gw_memory memory = GW_MEMORY_INIT;
        const gw_engine_options *const c = &options;
        internal::call(gw_engine_plan, source.get(), c, &memory);
        return memory;
    }

    gw_engine_info info() const {
        gw_engine_info info = GW_ENGINE_INFO_INIT;
        internal::call(gw_engine_describe, get(), &info);
        return info;
    }
    gw_memory memory() const {
        gw_memory memory = GW_MEMORY_INIT;
        internal::call(gw_engine_memory, get(), &memory);
        return memory;
    }

    // Loads an adapter under a name that is free, and returns its generation.
    std::uint64_t load(std::string_view name, const Source &source) const {
        std::uint64_t generation = 0;
        internal::call(gw_adapter_load, get(), name.data(), name.size(), source.get(), &generation);
        return generation;
    }
    // Gives a name to another adapter, if it still belongs to the generation `expected` (0: to any).
    std::uint64_t replace(std::string_view name, const Source &source, std::uint64_t expected = 0) const {
        std::uint64_t generation = 0;
        internal::call(gw_adapter_replace, get(), name.data(), name.size(), source.get(), expected, &generation);
        return generation;
    }
    void unload(std::string_view name) const {
        internal::call(gw_adapter_unload, get(), name.data(), name.size());
    }
    // Keeps an adapter in memory, or no longer.
    void pin(std::string_view name, bool pinned = true) const {
        internal::call(gw_adapter_pin, get(), name.data(), name.size(), std::int32_t{pinned});
    }
    // All adapters, ordered by name.
    std::vector<Adapter> adapters() const { return list(internal::make<gw_adapters>(gw_adapter_list, get())); }
    // The adapter of this name.
    Adapter adapter(std::string_view name) const {
        return list(internal::make<gw_adapters>(gw_adapter_describe, get(), name.data(), name.size())).at(0);
    }

    // Accepts a request and returns its id.
    std::uint64_t submit(const Request &request) const {
        return request.with_c([&](gw_request &c) {
            auto callback = keep(request.callback());
            if (callback) c.on_event = &hear, c.user = callback.get(), c.drop = &internal::drop<Callback>;
            std::uint64_t id = 0;
            internal::call(gw_submit, get(), &c, &id);
            callback.release(); // The library has it.
            return id;
        });
    }
    void cancel(std::uint64_t id) const { internal::call(gw_cancel, get(), id); }

    // Saves a request that waits or runs; it goes on.
    State save(std::uint64_t id) const { return State(internal::make<gw_state>(gw_state_save, get(), id)); }
    // Accepts a request that was saved, and returns its id. Without `on_event`, its events wait for poll().
    std::uint64_t resume(const Source &state, const Request::OnEvent &on_event = {}) const {
        auto callback = keep(on_event);
        std::uint64_t id = 0;
        internal::call(gw_state_resume, get(), state.get(), callback ? &hear : nullptr,
                       static_cast<void *>(callback.get()), callback ? &internal::drop<Callback> : nullptr, &id);
        callback.release(); // The library has it.
        return id;
    }

    // One forward pass over everything that is ready. False when all requests have ended.
    bool step() const {
        const auto thrown = thrown_; // A callback may close this engine.
        internal::rethrow(thrown);
        std::int32_t live = 0;
        internal::call(gw_step, get(), &live);
        internal::rethrow(thrown);
        return live != 0;
    }
    // The next event of a request, or, with id 0, of any that has no callback; none if there is none in time.
    Event poll(std::uint64_t id = 0, std::uint32_t timeout_ms = GW_FOREVER) const {
        const auto thrown = thrown_;
        internal::rethrow(thrown);
        Event event(internal::make<gw_event>(gw_poll, get(), id, timeout_ms));
        if (!event) internal::rethrow(thrown);
        return event;
    }

    // The tokens of a request's prompt.
    std::vector<std::uint32_t> prompt_tokens(const Request &request) const {
        return request.with_c([&](const gw_request &c) {
            std::size_t count = 0;
            internal::call(gw_prompt_tokens, get(), &c, nullptr, std::size_t{0}, &count);
            std::vector<std::uint32_t> tokens(count);
            internal::call(gw_prompt_tokens, get(), &c, tokens.data(), tokens.size(), &count);
            return tokens;
        });
    }
    std::string detokenize(const std::vector<std::uint32_t> &tokens) const {
        std::size_t size = 0;
        internal::call(gw_detokenize, get(), tokens.data(), tokens.size(), nullptr, std::size_t{0}, &size);
        std::string text(size, '\0');
        internal::call(gw_detokenize, get(), tokens.data(), tokens.size(), text.data(), text.size(), &size);
        return text;
    }
    // The logits at every position of a sequence: rows of info().vocab values.
    std::vector<float> logits(const std::vector<std::uint32_t> &tokens, const std::vector<Use> &adapters = {}) const {
        std::vector<gw_use> uses;
        for (const Use &use : adapters) uses.push_back({use.name.data(), use.name.size(), use.weight, 0});
        std::vector<float> logits(tokens.size() * info().vocab);
        internal::call(gw_logits, get(), tokens.data(), tokens.size(), uses.data(), uses.size(), logits.data(),
                       logits.size());
        return logits;
    }

    const gw_engine *get() const noexcept { return handle_.get(); }

private:
    // What a request that is submitted keeps.
    struct Callback {
        Request::OnEvent function; // Empty once it threw: what it refers to may be gone.
        std::shared_ptr<internal::Thrown> thrown;
    };

    // What the library is given to keep; null without a function.
    std::unique_ptr<Callback> keep(const Request::OnEvent &function) const {
        return function ? std::make_unique<Callback>(Callback{function, thrown_}) : nullptr;
    }

    static std::int32_t hear(void *user, const gw_event *event) noexcept {
        auto &callback = *static_cast<Callback *>(user);
        if (!callback.function) return 1;
        // Out of the way of a step() or poll() in the callback, which is not the one to throw it.
        std::exception_ptr before = callback.thrown->take(), thrown;
        const std::int32_t threw = internal::guard(thrown, [&] { callback.function(Event(event)); });
        if (threw) callback.function = nullptr;
        if (before || thrown) callback.thrown->keep(before ? std::move(before) : std::move(thrown));
        return threw;
    }

    static std::vector<Adapter> list(const internal::Handle<gw_adapters> &handle) {
        std::vector<Adapter> all;
        for (std::size_t i = 0; i < gw_adapters_count(handle.get()); ++i) {
            gw_adapter_info info = GW_ADAPTER_INFO_INIT;
            const gw_status status = gw_adapters_get(handle.get(), i, &info);
            if (status != GW_OK) throw Error(status, nullptr);
            all.push_back({{info.name, info.name_size},
                           {info.kind, info.kind_size},
                           info.generation,
                           info.sites,
                           info.bytes,
                           info.requests,
                           (info.state & GW_ADAPTER_RESIDENT) != 0,
                           (info.state & GW_ADAPTER_PINNED) != 0,
                           info.loads});
        }
        return all;
    }

    std::shared_ptr<internal::Thrown> thrown_ = std::make_shared<internal::Thrown>();
    internal::Handle<gw_engine> handle_;
};

} // namespace graftwork

#endif
