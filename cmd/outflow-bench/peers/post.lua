-- Creates customers, every one with an email of its own, and tells what came of
-- it in one line of JSON.
local run = os.getenv("RUN")
local n = 0
local headers = { ["Content-Type"] = "application/json" }
local body = '{"name":"Ada Lovelace %d","email":"ada%s-%d@example.com","phone":"+44 20 7946 0018","status":"active",'
  .. '"address":{"line1":"12 St James\'s Square","city":"London","postal_code":"SW1Y 4JH","country":"GB"}}'

function request()
  n = n + 1
  return wrk.format("POST", "/api/customers", headers, body:format(n, run, n))
end

function done(summary, latency)
  local e = summary.errors
  print(("RESULT {\"answers\":%d,\"seconds\":%.3f,\"p50_ms\":%.2f,\"p99_ms\":%.2f,\"refused\":%d,\"broken\":%d}"):format(
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.status, e.connect + e.read + e.write + e.timeout))
end
