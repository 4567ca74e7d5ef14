#include "vmm/cli/man_page.h"

#include <fmt/format.h>

#include <algorithm>

namespace lethe {
namespace {

// Text as roff shows it: minus signs that can be copied, no escapes, and no line that begins with a
// dot or an apostrophe by chance.
std::string roff(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\')
      out += "\\e";
    else if (c == '-')
      out += "\\-";
    else if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n'))
      out += fmt::format("\\&{}", c);
    else
      out += c;
  }
  return out;
}

std::string upper(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return out;
}

std::string heading(std::string_view page, std::string_view summary) {
  return fmt::format(".TH {} 1 \"\" \"Lethe {}\" \"Lethe\"\n.SH NAME\n{} \\- {}\n",
                     roff(upper(page)), LETHE_VERSION, roff(page), roff(summary));
}

std::string option_entry(const OptionText& option) {
  std::string names;
  for (const std::string& name : option.names)
    names += fmt::format("{}\\f{}{}\\fR", names.empty() ? "" : ", ", option.positional ? 'I' : 'B',
                         roff(name));
  if (option.repeatable && option.positional) names += " ...";
  if (!option.value.empty()) names += fmt::format(" \\fI{}\\fR", roff(option.value));
  return fmt::format(".TP\n{}\n{}\n", names, roff(option.help));
}

// "64 + N the guest ..." begins with its code, "64 + N".
std::string exit_entry(std::string_view exit) {
  size_t end = std::min(exit.find(' '), exit.size());
  if (exit.substr(end).starts_with(" + ")) end = std::min(exit.find(' ', end + 3), exit.size());
  return fmt::format(".TP\n\\fB{}\\fR\n{}\n", roff(exit.substr(0, end)),
                     roff(exit.substr(std::min(end + 1, exit.size()))));
}

}  // namespace

std::string man_page(const CommandText& text) {
  std::string page = heading("lethe-" + text.name, text.summary);
  std::string_view rest = text.name;
  const std::string usage = usage_of(text);
  rest = std::string_view(usage).substr(sizeof "lethe " + rest.size());
  page += fmt::format(".SH SYNOPSIS\n.B lethe {}\n{}\n", roff(text.name), roff(rest));
  page += fmt::format(".SH DESCRIPTION\n{}\n", roff(text.description));
  page += ".SH OPTIONS\n";
  for (const bool positional : {true, false})
    for (const OptionText& option : text.options)
      if (option.positional == positional) page += option_entry(option);
  if (!text.exits.empty()) page += ".SH EXIT STATUS\n";
  for (const std::string& exit : text.exits) page += exit_entry(exit);
  page += ".SH EXAMPLES\n.nf\n";
  for (const std::string& example : text.examples) page += roff(example) + "\n";
  return page + ".fi\n.SH SEE ALSO\n.BR lethe (1)\n";
}

std::string man_page_of_all(std::span<const CommandText> commands) {
  std::string page = heading("lethe", "run many isolated VMs on one host");
  page +=
      ".SH SYNOPSIS\n.B lethe\nCOMMAND [OPTIONS]\n.SH DESCRIPTION\n"
      "Lethe is a virtual machine monitor for Linux and KVM. One process is one VM, and there is "
      "no daemon: commands find the VMs of this user by their run\\-time directories.\n"
      ".SH COMMANDS\n";
  for (const CommandText& text : commands)
    page += fmt::format(".TP\n.BR lethe\\-{} (1)\n{}\n", roff(text.name), roff(text.summary));
  page +=
      ".SH FILES\n.TP\n\\fI$XDG_RUNTIME_DIR/lethe/NAME/\\fR\n"
      "A VM's run\\-time directory: \\fIapi.sock\\fR, the control API; \\fIconsole.sock\\fR, its "
      "console; \\fIgui.sock\\fR, its screen and windows; \\fIlock\\fR, which says whose the name "
      "is. Without \\fBXDG_RUNTIME_DIR\\fR it is below \\fI/run/user/UID/lethe/\\fR, else below "
      "\\fI/tmp/lethe\\-UID/\\fR.\n.SH SEE ALSO\n";
  std::string separator;
  for (const CommandText& text : commands) {
    page += fmt::format("{}.BR lethe\\-{} (1)", separator, roff(text.name));
    separator = ",\n";
  }
  return page + "\n";
}

}  // namespace lethe
