-- Takes events of one user into the user's history, the record of ids already taken, and the partition's log.
--
-- Redis runs a script alone and writes its effects to disk as one transaction, so the three cannot disagree.
-- All reads come before the first write, and the one write that can fail comes first: a failure leaves nothing half done.
--
-- KEYS  history  MessagePack array, five values an event, oldest first: timestamp_ms, event_id, item_id, type, value
--       record   twelve bytes an event, in order of arrival: digest of the event id, second of arrival (big-endian)
--       log      stream of the partition
-- ARGV  history_length, history_ttl_s, record_length, record_ttl_s, log_length, log_min_s, now_s, then the events as a
--       MessagePack array of {timestamp_ms, event_id, item_id, type, value or false, digest, in_sequence, log fields},
--       ordered as a history is; the first five go there as they are
-- Gives the number of events that were new, below zero where they begin the history anew because what was there could
-- not be read, or the error LOGFULL where the log would have to drop an entry that is younger than log_min_s to take
-- them.

local STRIDE = 5
local DIGEST = 8
local ENTRY = 12
-- Entries that a call looks at and drops at most, beyond those it adds: ten milliseconds of work. A log that has become
-- too long by more, since its length was lowered, gets there by and by.
local DROPPED = 1000
local CHUNK = 32 -- bytes of two ids that are compared at once: others wait while a thousand long ones are

local history_length, history_ttl_s = tonumber(ARGV[1]), tonumber(ARGV[2])
local record_length, record_ttl_s = tonumber(ARGV[3]), tonumber(ARGV[4])
local log_length, log_min_s, now_s = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local events = cmsgpack.unpack(ARGV[8])

-- Lua's own `<` on strings follows the locale of the server; byte order is the same everywhere.
local function later(time_a, id_a, time_b, id_b)
  if time_a ~= time_b then return time_a > time_b end
  local from, shorter = 1, math.min(#id_a, #id_b)
  while from <= shorter and string.sub(id_a, from, from + CHUNK - 1) == string.sub(id_b, from, from + CHUNK - 1) do
    from = from + CHUNK
  end
  for i = from, shorter do
    local a, b = string.byte(id_a, i), string.byte(id_b, i)
    if a ~= b then return a > b end
  end
  return #id_a > #id_b
end

-- The values of a history, or an error if it is none. Comparing a value with one of another type is an error, and quicker
-- than asking for its type; nothing is less than '', less than minus infinity, or happened before 0.
local function read(stored)
  local first = string.byte(stored)
  local array = first and (first >= 0x90 and first <= 0x9f or first == 0xdc or first == 0xdd)
  local window, more = cmsgpack.unpack(stored)
  if not array or more ~= nil or #window % STRIDE ~= 0 then error('not a list of events') end
  for i = 1, #window, STRIDE do
    local value = window[i + 4]
    if window[i] < 0 or window[i + 1] < '' or window[i + 2] < '' or (value ~= false and value < -math.huge) then
      error('not an event')
    end
  end
  return window
end

-- One that is no list of events counts as empty, as it does for readers, who also look into its text: an error would
-- refuse the user's events for good, and with them those of others in the same request.
local stored = redis.call('GET', KEYS[1])
local whole, window = true, {}
if stored then whole, window = pcall(read, stored) end
if not whole then window = {} end
-- A record and a window of fifty entries are searched for one event in less time than their sets are made.
local few = #events <= 4
local in_window = {}
if not few then
  for i = 2, #window, STRIDE do in_window[window[i]] = true end
end

local record = redis.call('GET', KEYS[2]) or ''
local from = 1
while from <= #record and struct.unpack('>I4', record, from + DIGEST) <= now_s - record_ttl_s do from = from + ENTRY end
record = string.sub(record, from)
local recorded = {}
if not few then
  for i = 1, #record, ENTRY do recorded[string.sub(record, i, i + DIGEST - 1)] = true end
end

local function known(event_id, digest)
  if recorded[digest] or in_window[event_id] then return true end
  if not few then return false end
  local at = string.find(record, digest, 1, true)
  while at and (at - 1) % ENTRY ~= 0 do at = string.find(record, digest, at + 1, true) end
  if at then return true end
  for i = 2, #window, STRIDE do
    if window[i] == event_id then return true end
  end
  return false
end

local logged, taken, shown = {}, { record }, {}
for _, event in ipairs(events) do
  local digest = event[6]
  if not known(event[2], digest) then
    recorded[digest] = true
    taken[#taken + 1] = digest .. struct.pack('>I4', now_s)
    logged[#logged + 1] = event[8]
    if event[7] then shown[#shown + 1] = event end
  end
end

if #logged == 0 then return 0 end

-- The window and what is new in it are merged from their ends, and only as far as the new window will reach: nearly
-- always that is one event, which goes to the end.
local dropped = math.max(0, #window + (#shown - history_length) * STRIDE)
local last, left = #window, #shown
for i = last + 1, last + left * STRIDE do window[i] = false end -- filled from its end, a table would be slow
while left > 0 and last + left * STRIDE > dropped do
  local event, to = shown[left], last + (left - 1) * STRIDE
  if last > 0 and later(window[last - 4], window[last - 3], event[1], event[2]) then
    for i = 0, STRIDE - 1 do window[to + STRIDE - i] = window[last - i] end
    last = last - STRIDE
  else
    for i = 1, STRIDE do window[to + i] = event[i] end
    left = left - 1
  end
end
if dropped > 0 then
  for i = 1, #window do window[i] = window[i + dropped] end
end

local trim = { 'XTRIM', KEYS[3], 'MAXLEN', '~', log_length }
if log_min_s > 0 then
  local surplus = redis.call('XLEN', KEYS[3]) + #logged - log_length
  if surplus > 0 then
    local most = math.min(surplus, #logged + DROPPED)
    local oldest = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', most)
    local newest_dropped = oldest[#oldest]
    -- By the server's clock, as ids are: a worker's may be ahead, and would drop what is too young.
    local oldest_kept_ms = (redis.call('TIME')[1] - log_min_s) * 1000
    if newest_dropped and tonumber(string.match(newest_dropped[1], '^%d+')) > oldest_kept_ms then
      return redis.error_reply('LOGFULL the event log is full of entries too young to be dropped; archive it')
    end
    trim[6], trim[7] = 'LIMIT', most
  end
end
for _, fields in ipairs(logged) do
  redis.call('XADD', KEYS[3], '*', unpack(fields))
end
redis.call(unpack(trim))
redis.call('SET', KEYS[2], string.sub(table.concat(taken), -record_length * ENTRY), 'EX', record_ttl_s)
if #shown > 0 then
  redis.call('SET', KEYS[1], cmsgpack.pack(window), 'EX', history_ttl_s)
  if not whole then return -#logged end
end
return #logged
