-- The processor's hands in Envoy. A request is held until it was decided and then passes with its route; what was not
-- decided does not pass. On an answer's way back token usage is read off the passing bytes, the usage event that the
-- client did not ask for is taken out, a cacheable body is kept, our headers are set, errors get OpenAI's shape.
-- It stands here because the processor is asked once, before the upstream, and never sees a chunk of an answer; what
-- is learnt goes out with the access log. Nothing is decided here and nothing is known of tenants.
--
-- In, dynamic metadata `llm`, set by the processor:
--   forward      true, or the request does not pass (answers of the processor's own get their headers and no more)
--   model        the route: set as x-llm-model
--   length       number: the new length of a body that the processor has changed
--   traceparent  for the upstream, where the request is traced
--   strip_usage  true: take the stream's usage event out (`"choices":[]` with `"usage":{`)
--   fill         number: keep the body of a 200 of at most so many bytes
--   headers      "name: value\n" lines, set on every answer (a struct of them costs three times as much on its way)
-- Out, dynamic metadata `llm.usage`, key `report`: one JSON text (one metadata call costs 1 us, five cost 5):
--   first_us     wall clock, microseconds, when the first byte of the body passed
--   events, bytes  of the stream so far; written at 1, 2, 4, 8, 16 events, then every 16: no code runs after an
--                  abort, such a stream is charged by its last mark
--   done         true: the answer passed whole
--   usage        its usage object
-- and `llm.fill`: body, base64 of the whole body as the upstream sent it.
--
-- Cost per chunk decides the style: no table, no closure and no metadata call on the path of an ordinary event.

local byte, find, gmatch, gsub = string.byte, string.find, string.gmatch, string.gsub
local match, sub = string.match, string.sub
local concat = table.concat

local WINDOW = 4096       -- longest usage object that is believed
local LONGEST = 65536     -- an event longer than this is no usage event: it is let go while it is still incomplete
local MARK_EVERY = 16
local BACKSLASH, RETURN = 92, 13

local function metadata(h) return h:streamInfo():dynamicMetadata() end -- must be fetched anew after each chunk

-- The last usage object in a piece of JSON. Words of an answer cannot look like one, for quotation marks in a string
-- are escaped; token counts tell it from a schema's property of that name. Only text that protobuf takes for UTF-8
-- may be passed on: one bad byte would spoil the whole access-log message.
local function usage_in(text)
  local found
  local _, at = find(text, '"usage"', 1, true)
  while at do
    local object = match(text, "^%s*:%s*(%b{})", at + 1)
    if object and #object < WINDOW and find(object, '_tokens"%s*:%s*%d') and find(object, "^[ -~%s]*$") then
      found = object
    end
    _, at = find(text, '"usage"', at, true)
  end
  return found
end

local function is_usage_event(event)
  local _, at = find(event, '"choices"', 1, true)
  return at and find(event, "^%s*:%s*%[%s*%]", at + 1) and usage_in(event)
    and not find(event, "\ndata:", 1, true) -- several lines of data in one event: not what we asked for
end

local function clock(h) return h:timestampString(EnvoyTimestampResolution.MICROSECOND) end

local function report(h, first, events, bytes, done, usage)
  metadata(h):set("llm.usage", "report", '{"first_us":' .. (first or 0) .. ',"events":' .. events .. ',"bytes":'
    .. bytes .. (done and ',"done":true' or "") .. (usage and ',"usage":' .. usage or "") .. "}")
end

local function keep(parts, piece, fits)
  if not fits then return nil end
  parts[#parts + 1] = piece
  return parts
end

local function finish(h, first, events, bytes, usage, parts)
  report(h, first, events, bytes, true, usage)
  if parts and bytes > 0 then metadata(h):set("llm.fill", "body", h:base64Escape(concat(parts))) end
end

-- Streams -----------------------------------------------------------------------------------------------------------
-- s.rest is the incomplete event at the end of what came, s.sent how many bytes of it the client already has;
-- s.last and s.before are the last two whole events.

local function blank_line(text)
  local at = find(text, "\n", 1, true)
  if at then return at > 1 and byte(text, at - 1) == RETURN and "\r\n\r\n" or "\n\n" end
end

local function note(s, event)
  s.events = s.events + 1
  s.before, s.last = s.last, event
end

local function trim(s)
  s.usage = usage_in(s.rest) or s.usage
  s.rest = sub(s.rest, -WINDOW)
  s.sent = #s.rest
end

-- Any piece that is not just one whole event. Returns the bytes that may go on.
local function split(s, piece)
  local data = s.rest .. piece
  s.blank = s.blank or blank_line(data)
  local from, unsent, out = 1, s.sent + 1, ""
  local _, to
  if s.blank then _, to = find(data, s.blank, #s.rest > 3 and #s.rest - 2 or 1, true) end
  while to do
    local event = sub(data, from, to)
    if s.strip and unsent <= from and is_usage_event(event) then
      out = out .. sub(data, unsent, from - 1)
      unsent = to + 1
    end
    note(s, event)
    from = to + 1
    _, to = find(data, s.blank, from, true)
  end
  s.rest = sub(data, from)
  if s.strip and unsent <= from and #s.rest <= LONGEST then -- hold the unfinished event back
    s.sent = 0
    return out .. sub(data, unsent, from - 1)
  end
  s.sent = #s.rest
  if s.sent > LONGEST then trim(s) end
  return out .. sub(data, unsent)
end

local function mark(h, first, events, bytes, at)
  report(h, first, events, bytes)
  while at <= events do at = at < MARK_EVERY and (at == 0 and 1 or at * 2) or at + MARK_EVERY end
  return at
end

-- What is still held when the stream ends without a blank line goes out with its last chunk. (A stream that ends in
-- trailers has no last chunk any more; then an unfinished event is lost.)
local function release(s, chunk)
  local held = sub(s.rest, s.sent + 1)
  if find(s.rest, "data:", 1, true) then note(s, s.rest) end
  if held == "" or not chunk or s.sent == 0 and is_usage_event(held) then return end
  pcall(function() chunk:setBytes(chunk:getBytes(0, chunk:length()) .. held) end)
end

local function stream_usage(s)
  return usage_in(s.last) or usage_in(s.before) or s.usage
end

local function stream(h, strip, fill)
  local s = { strip = strip, rest = "", sent = 0, events = 0, last = "", before = "" }
  local bytes, finished_at, next_mark, parts, final, first = 0, 0, 0, fill and {}, nil, nil
  for chunk in h:bodyChunks() do
    final = chunk
    local n = chunk:length()
    if n > 0 then
      local piece = chunk:getBytes(0, n)
      first = first or clock(h)
      bytes = bytes + n
      if parts then parts = keep(parts, piece, bytes <= fill) end
      local blank = s.blank
      if blank and s.rest == "" and find(piece, blank, 1, true) == n - #blank + 1 then
        s.events = s.events + 1
        s.before, s.last = s.last, piece
        if strip and find(piece, "[]", 1, true) and is_usage_event(piece) then chunk:setBytes("") end
      else
        local out = split(s, piece)
        if strip and out ~= piece then chunk:setBytes(out) end
      end
      local events = s.events
      if events >= next_mark then next_mark = mark(h, first, events, bytes, next_mark) end
      -- Clients hang up as soon as they have read the last event: the answer is whole here, not a chunk later.
      if #s.last < 24 and s.rest == "" and find(s.last, "[DONE]", 1, true) then
        finish(h, first, events, bytes, stream_usage(s), parts)
        finished_at = bytes
      end
    end
  end
  if s.rest ~= "" then release(s, strip and final) end
  if finished_at ~= bytes or bytes == 0 then finish(h, first, s.events, bytes, stream_usage(s), parts) end
end

-- Whole answers -----------------------------------------------------------------------------------------------------

local function plain(h, fill, opaque)
  local bytes, tail, usage, parts, first = 0, "", nil, fill and {}, nil
  for chunk in h:bodyChunks() do
    local n = chunk:length()
    if n > 0 then
      if not first then
        first = clock(h)
        report(h, first, 0, n)
      end
      bytes = bytes + n
      if not opaque then
        local piece = chunk:getBytes(0, n)
        if parts then parts = keep(parts, piece, bytes <= fill) end
        -- A body may be of any size and carry anything after its usage: it is searched as it passes.
        local text = tail == "" and piece or tail .. piece
        usage = usage_in(text) or usage
        tail = sub(text, -WINDOW)
      end
    end
  end
  finish(h, first, 0, bytes, usage, parts)
end

-- Errors ------------------------------------------------------------------------------------------------------------

local CODES = { [429] = "rate_limit_exceeded", [502] = "bad_gateway", [503] = "service_unavailable", [504] = "timeout" }
local MESSAGES = {
  [404] = "The model server does not know this resource.",
  [429] = "The model server is busy. Try again later.",
  [503] = "The model is not available right now. Try again later.",
  [504] = "The model did not answer in time.",
}

local function utf8(text)
  local rest = gsub(text, "[\194-\223][\128-\191]", "?")
  rest = gsub(rest, "[\224-\239][\128-\191][\128-\191]", "?")
  rest = gsub(rest, "[\240-\244][\128-\191][\128-\191][\128-\191]", "?")
  return not find(rest, "[\128-\255]")
end

-- The string value of a key, still escaped; nothing unless it may stand in our JSON as it is.
local function raw_string(body, key)
  local _, from = find(body, '[^\\]"' .. key .. '"%s*:%s*"')
  local at = from and find(body, '["\\]', from + 1)
  while at and byte(body, at) == BACKSLASH do
    if not find(body, '^["\\/bfnrt]', at + 1) and not find(body, "^u%x%x%x%x", at + 1) then return nil end
    at = find(body, '["\\]', at + 2)
  end
  local text = at and sub(body, from + 1, at - 1)
  return text and not find(text, "%c") and utf8(text) and text or nil
end

-- An error of the request itself may be told to the client, short of the place in the server's code where it arose.
local function told(body, status)
  if status >= 500 or status == 429 or not find(body, "^%s*{") then return nil end
  local message = raw_string(body, "message")
  if not message then return nil end
  local trace = find(message, "Traceback (most recent", 1, true) or find(message, '\\n%s*File \\"')
  if trace then message = gsub(gsub(sub(message, 1, trace - 1), "%s+$", ""), "\\n$", "") end
  local cut_in_escape = #match(message, "\\*$") % 2 == 1
  return message ~= "" and not cut_in_escape and message or nil
end

local function kind(status)
  if status >= 500 then return "server_error" end
  return status == 429 and "rate_limit_error" or "invalid_request_error"
end

local function has(text, words) return find(text, words, 1, true) ~= nil end

local function code(status, message)
  if status == 400 and (has(message, "maximum context length") or has(message, "maximum model length")) then
    return "context_length_exceeded"
  elseif status == 404 and has(message, "model") and has(message, "does not exist") then
    return "model_not_found"
  end
  return CODES[status] or status >= 500 and "internal_error" or nil
end

local function quoted(text) return text and '"' .. text .. '"' or "null" end

local function shaped(status, body)
  local said = told(body, status)
  local message = said or MESSAGES[status]
    or (status >= 500 and "The model server failed." or "The model server did not accept the request.")
  return '{"error":{"message":' .. quoted(message) .. ',"type":' .. quoted(kind(status))
    .. ',"param":' .. quoted(said and raw_string(body, "param")) .. ',"code":' .. quoted(code(status, message)) .. "}}"
end

-- OpenAI's own code words are strings, a model server's are numbers: such an answer is already ours (an error of the
-- proxy itself) and stays.
local function is_shaped(body) return find(body, '^%s*{%s*"error"%s*:') and raw_string(body, "code") end

local function failure(h, status)
  local body = h:body(true)
  local headers = h:headers() -- like the metadata, to be fetched anew
  local text = body:getBytes(0, body:length())
  if status == 401 or status == 403 then -- our own credentials are wrong, not the client's
    headers:replace(":status", "502")
    body:setBytes('{"error":{"message":"The upstream refused our request.","type":"server_error","param":null,'
      .. '"code":"upstream_refused"}}')
  elseif not is_shaped(text) then
    body:setBytes(shaped(status, text))
  end
  headers:replace("content-type", "application/json")
  report(h, nil, 0, 0, true)
end

-- Requests ----------------------------------------------------------------------------------------------------------

local function refuse(h)
  metadata(h):set("llm", "answer", true)
  h:respond({ [":status"] = "400", ["content-type"] = "application/json" },
    '{"error":{"message":"The request body is empty: a JSON object is needed.","type":"invalid_request_error",'
      .. '"param":null,"code":null}}')
end

function envoy_on_request(h)
  h:body() -- returns when the last of it has passed the processor: only then is there a decision
  local llm = metadata(h):get("llm")
  if not llm or not llm.forward then return refuse(h) end
  local headers = h:headers()
  headers:replace("x-llm-model", llm.model)
  headers:remove("authorization") -- the caller's credentials are ours
  headers:remove("cookie")
  headers:remove("accept-encoding") -- compressed answers could not be metered
  headers:replace("content-type", "application/json") -- vLLM refuses some ways of writing it
  if llm.length and headers:get("content-length") then headers:replace("content-length", tostring(llm.length)) end
  if llm.traceparent then headers:replace("traceparent", llm.traceparent) end
  h:clearRouteCache()
end

-- Answers -----------------------------------------------------------------------------------------------------------

function envoy_on_response(h)
  local llm = metadata(h):get("llm")
  if not llm then return end
  local headers = h:headers()
  if llm.headers then
    for name, value in gmatch(llm.headers, "([^:]+): ([^\n]*)\n") do headers:replace(name, value) end
  end
  if not llm.forward then return end
  local status = tonumber(headers:get(":status"))
  local fill = status == 200 and llm.fill or nil
  if headers:get("content-encoding") then
    plain(h, nil, true)
  elseif status >= 400 then
    failure(h, status)
  elseif find(headers:get("content-type") or "", "text/event-stream", 1, true) then
    if llm.strip_usage then headers:remove("content-length") end
    stream(h, llm.strip_usage, fill)
  else
    plain(h, fill, false)
  end
end
