#include "frontend/vnc/web_page.h"

namespace lethe::gui {

const std::string_view kPageHtml = R"(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Lethe</title>
<style>
  html, body { margin: 0; height: 100%; background: #000; color: #ccc; font: 16px sans-serif; }
  body { display: flex; flex-direction: column; }
  #say { padding: 4px 8px; }
  #say:empty { display: none; }
  #screen { flex: 1; min-height: 0; }
</style>
</head>
<body>
<form id="ask" hidden>
  <label>Password: <input id="password" type="password" autocomplete="off"></label>
  <button>Connect</button>
</form>
<div id="say">Connecting</div>
<div id="screen"></div>
<script type="module" src="lethe.js"></script>
</body>
</html>
)";

// ?resize makes the guest's screen as large as the page; else it is scaled. #password=... spares
// the question (the part after # is not sent to anyone). window.lethe is for tests.
const std::string_view kPageScript = R"(const say = (text) => {
  document.getElementById("say").textContent = text;
};

const connect = (RFB) => {
  const given = new URLSearchParams(location.hash.slice(1)).get("password");
  const rfb = new RFB(document.getElementById("screen"), "ws://" + location.host + "/vnc",
                      given === null ? {} : {credentials: {password: given}});
  window.lethe = rfb;
  rfb.resizeSession = new URLSearchParams(location.search).has("resize");
  rfb.scaleViewport = !rfb.resizeSession;
  rfb.addEventListener("connect", () => say(""));
  rfb.addEventListener("desktopname", (event) => { document.title = event.detail.name; });
  rfb.addEventListener("disconnect", (event) => {
    say(event.detail.clean ? "The VM has ended. Reload to connect again."
                           : "The connection is lost. Reload to try again.");
  });
  rfb.addEventListener("securityfailure", () => say("The password is wrong. Reload to try again."));
  rfb.addEventListener("credentialsrequired", () => {
    const ask = document.getElementById("ask");
    ask.hidden = false;
    say("");
    document.getElementById("password").focus();
    ask.onsubmit = (event) => {
      event.preventDefault();
      ask.hidden = true;
      rfb.sendCredentials({password: document.getElementById("password").value});
    };
  });
};

import("./core/rfb.js").then(
  (module) => connect(module.default),
  () => say("noVNC is not installed: run ./dev setup, or give lethe-vnc its folder with --web."));
)";

}  // namespace lethe::gui
