// Shows the API's document with ids of what is there, so that its examples can
// be sent as they are: a confirmed order's and its customer's, else the newest
// ones. Where there are none yet, the document's own ids stay. Emails are taken
// once, so each example gets some that nobody has.
const json = async (path) => (await fetch(path)).json();
const first = async (path) => (await json(path).catch(() => null))?.data?.[0];

const newest = "?sort=-created_at&limit=1";
const [spec, confirmed, placed, last] = await Promise.all([
  json("/openapi.json"), first(`/api/orders${newest}&status=confirmed`), first(`/api/orders${newest}`), first(`/api/customers${newest}`),
]);
const order = confirmed ?? placed;
const customer = order?.customer_id ?? last?.id;
let sent = 0;

for (const [path, operations] of Object.entries(spec.paths)) {
  const id = path.startsWith("/api/orders") ? order?.id : customer;
  for (const operation of Object.values(operations)) {
    for (const parameter of operation.parameters ?? []) {
      if (parameter.in === "path" && id) parameter.example = id;
      // A key names one request; the one in the document would be sent with many.
      if (parameter.name === "Idempotency-Key") delete parameter.example;
    }
    for (const { examples: all } of Object.values(operation.requestBody?.content ?? {})) {
      for (const example of Object.values(all ?? {})) {
        example.value = typeof example.value === "string" ? sendable(example.value) : JSON.parse(sendable(JSON.stringify(example.value)));
      }
    }
  }
}

// sendable takes an example's JSON, or lines of it.
function sendable(text) {
  const fresh = `-${Date.now().toString(36)}${(sent++).toString(36)}@example.com`;
  const named = customer ? text.replace(/("customer_id":")[^"]*/g, `$1${customer}`) : text;
  return named.replace(/("email":"[^"@]*)@example\.com/g, `$1${fresh}`);
}

await customElements.whenDefined("rapi-doc");
document.querySelector("rapi-doc").loadSpec(spec);
