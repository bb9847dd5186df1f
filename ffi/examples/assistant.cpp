// An assistant that calls functions of this program: an adapter has the model say which, and with what.
//
//     assistant MODEL ADAPTER [QUESTION ...]    answers all questions in one batch
//     assistant                                 does what the lines of stdin say, without a model
//
// What is said is not trusted: nothing is called unless it is a call of a function that there is, with arguments that it takes.
#include <graftwork.hpp>

#include <algorithm>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <vector>

namespace {
struct Json {
    std::string type, text, key; // "object", "array", "string", "number", "integer" or "boolean"; its key in an object.
    std::vector<Json> elements;

    const Json *find(const std::string &name) const {
        for (const Json &element : elements)
            if (element.key == name) return &element;
        return nullptr;
    }
    const Json &at(const std::string &name) const {
        if (const Json *found = find(name)) return *found;
        throw std::invalid_argument("there is no \"" + name + '"');
    }
};

// Reads JSON. Throws at whatever is none, and at null and escapes by number, which no call needs.
struct Reader {
    std::string::const_iterator at, end;
    std::string taken;

    [[noreturn]] void fail(const std::string &expected) const {
        throw std::invalid_argument("expected " + expected + ", found \"" + std::string(at, end) + '"');
    }
    // Whether this pattern is next: takes it then, and white space around it.
    bool next(const char *pattern) {
        std::smatch found;
        const std::regex regex("[ \t\n\r]*(" + std::string(pattern) + ")[ \t\n\r]*");
        if (!std::regex_search(at, end, found, regex, std::regex_constants::match_continuous)) return false;
        taken = found[1], at = found[0].second;
        return true;
    }
    std::string string() {
        if (!next(R"("([^"\\\x00-\x1f]|\\["\\/nt])*")")) fail("a value");
        std::string text;
        for (std::size_t i = 1; i + 1 < taken.size(); ++i)
            text += taken[i] != '\\' ? taken[i] : taken[++i] == 'n' ? '\n' : taken[i] == 't' ? '\t' : taken[i];
        return text;
    }
    Json value(int depth) {
        if (next("true|false")) return {"boolean", taken, "", {}};
        if (next(R"(-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?(?=[ \t\n\r,}\]]|$))"))
            return {taken.find_first_of(".eE") == std::string::npos ? "integer" : "number", taken, "", {}};
        const bool object = next(R"(\{)");
        if (!object && !next(R"(\[)")) return {"string", string(), "", {}};
        if (depth > 16) fail("fewer values in each other");
        Json read{object ? "object" : "array", "", "", {}};
        while (!next(object ? R"(\})" : R"(\])")) {
            if (!read.elements.empty() && !next(",")) fail("a comma");
            const std::string key = object ? string() : "";
            if (object && (read.find(key) || !next(":"))) fail("one value of " + key);
            read.elements.push_back(value(depth + 1));
            read.elements.back().key = key;
        }
        return read;
    }
};

Json parse(const std::string &text) {
    if (text.size() > 4096) throw std::invalid_argument("expected a call of at most 4096 characters");
    Reader reader{text.begin(), text.end(), ""};
    Json read = reader.value(0);
    if (reader.at != reader.end) reader.fail("the end");
    return read;
}

struct Tool {
    std::string description; // As the adapter was trained to read it: JSON.
    std::function<std::string(const Json &arguments)> run;
};
const std::map<std::string, Tool> tools = {
    {"get_weather",
     {R"({"name":"get_weather","description":"Current weather of a city.","parameters":{"type":"object","properties":{"city":{"type":"string","description":"The city's name."},"unit":{"type":"string","enum":["celsius","fahrenheit"]}},"required":["city"]}})",
      [](const Json &given) { return "rain in " + given.at("city").text + (given.find("unit") ? ", told in " + given.at("unit").text : ""); }}},
    {"rectangle_area",
     {R"({"name":"rectangle_area","description":"Area of a rectangle.","parameters":{"type":"object","properties":{"width":{"type":"number"},"height":{"type":"number"}},"required":["width","height"]}})",
      [](const Json &given) { return std::to_string(std::stod(given.at("width").text) * std::stod(given.at("height").text)); }}},
};

// Does what an answer says, and gives the result. Throws, and calls nothing, if it is not what a tool takes.
std::string dispatch(const std::string &answer) {
    const Json call = parse(answer), &arguments = call.at("arguments");
    const auto tool = tools.find(call.at("name").text);
    if (call.elements.size() != 2 || arguments.type != "object" || call.at("name").type != "string" || tool == tools.end())
        throw std::invalid_argument("expected a call of a function, found " + answer);
    const Json parameters = parse(tool->second.description).at("parameters");
    for (const Json &required : parameters.at("required").elements) arguments.at(required.text);
    for (const Json &argument : arguments.elements) {
        const Json &parameter = parameters.at("properties").at(argument.key);
        const std::string &type = parameter.at("type").text;
        bool fits = argument.type == type || (argument.type == "integer" && type == "number");
        if (const Json *choices = parameter.find("enum"))
            fits &= std::any_of(choices->elements.begin(), choices->elements.end(), [&](const Json &c) { return c.text == argument.text; });
        if (!fits) throw std::invalid_argument(argument.key + ": expected what the function takes, found " + argument.text);
    }
    return tool->second.run(arguments);
}

void act(const std::string &answer) try {
    std::cout << "= " + dispatch(answer) << std::endl;
} catch (const std::exception &error) {
    std::cout << "refused: " << error.what() << std::endl;
}

} // namespace
int main(int argc, char **argv) try {
    for (std::string line; argc == 1 && std::getline(std::cin, line);) act(line);
    if (argc < 4) return argc == 1 ? 0 : (std::cerr << "usage: assistant [MODEL ADAPTER QUESTION ...]\n", 1);
    const std::vector<std::string> questions(argv + 3, argv + argc);
    std::string system = "You call functions. Answer with one JSON object {\"name\": ..., \"arguments\": {...}} and nothing else.\nFunctions:";
    for (const auto &[name, tool] : tools) system += '\n' + tool.description;
    const graftwork::Engine engine(graftwork::Source::path(argv[1]));
    engine.load("tools", graftwork::Source::path(argv[2]));
    std::vector<std::string> answers(questions.size());
    std::vector<bool> over(questions.size());
    std::size_t now = 0; // The question whose answer is shown as it comes; later ones wait for their turn.
    const auto hear = [&](std::size_t i, const graftwork::Event &event) {
        if (event.failed()) throw std::runtime_error(std::string(event.message()));
        answers[i] += event.text(), over[i] = event.last();
        for (std::cout << (i == now ? event.text() : "") << std::flush; now < over.size() && over[now];) {
            std::cout << '\n', act(answers[now]);
            if (++now < over.size()) std::cout << "> " << questions[now] << '\n' << answers[now] << std::flush;
        }
    };
    std::cout << "> " << questions[0] << std::endl;
    for (std::size_t i = 0; i < questions.size(); ++i)
        engine.submit(graftwork::Request::chat({{"system", system}, {"user", questions[i]}}).adapter("tools").max_tokens(64)
                          .on_event([hear, i](const graftwork::Event &event) { hear(i, event); }));
    while (engine.step()) continue;
    return 0;
} catch (const std::exception &error) {
    std::cerr << "assistant: " << error.what() << '\n';
    return 1;
}
