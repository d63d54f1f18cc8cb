// Keeps the page fresh: asks for itself every two seconds, with the tag of what
// it shows, and takes over the parts that change. All of them were escaped by
// the server, as the page itself was.
"use strict";

const live = ["summary", "faults", "list"];
let tag = "";

async function refresh() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { headers: { Accept: "text/html", ...(tag && { "If-None-Match": tag }) } });
  if (answer.status !== 200 || answer.redirected) return;
  tag = answer.headers.get("ETag");
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const id of live) {
    const now = document.getElementById(id), next = fresh.getElementById(id);
    if (now.innerHTML === next.innerHTML) continue;
    const focused = now.contains(document.activeElement) && document.activeElement.id;
    now.replaceChildren(...next.childNodes);
    if (focused) document.getElementById(focused)?.focus();
  }
  document.getElementById("clear").hidden = fresh.getElementById("clear").hidden;
}

document.getElementById("clear").addEventListener("click", async () => {
  if (!confirm("Delete every mail in this inbox?")) return;
  await fetch("/inbox", { method: "DELETE" });
  location.href = "/inbox";
});

// A stopped outflow-dev is not an error of the page: it goes on when it is back.
setInterval(() => refresh().catch(() => {}), 2000);
