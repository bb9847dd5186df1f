// A conversation with a model, streamed, in C++.
//
//     chat MODEL PROMPT     answers one prompt
//     chat MODEL            answers the lines of stdin, and remembers what was said
#include <graftwork.hpp>

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// Says something, and lets the model answer.
void say(const graftwork::Engine &engine, std::vector<graftwork::Message> &conversation, const std::string &text) {
    conversation.push_back({"user", text});
    std::string answer;
    engine.submit(graftwork::Request::chat(conversation).max_tokens(48).on_event([&](const graftwork::Event &event) {
        if (event.failed()) throw std::runtime_error(std::string(event.message()));
        std::cout << event.text() << std::flush;
        answer += event.text();
    }));
    while (engine.step()) {
    }
    std::cout << '\n';
    conversation.push_back({"assistant", std::move(answer)});
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3) {
        std::cerr << "usage: chat MODEL [PROMPT]\n";
        return 1;
    }
    try {
        const graftwork::Engine engine(graftwork::Source::path(argv[1]));
        std::vector<graftwork::Message> conversation;
        if (argc == 3) {
            say(engine, conversation, argv[2]);
        } else {
            std::string line;
            while (std::cout << "> " << std::flush && std::getline(std::cin, line)) say(engine, conversation, line);
            std::cout << '\n';
        }
    } catch (const graftwork::Error &error) {
        std::cerr << "chat: " << gw_status_name(error.status()) << ": " << error.what() << '\n';
        return 1;
    } catch (const std::exception &error) {
        std::cerr << "chat: " << error.what() << '\n';
        return 1;
    }
}
