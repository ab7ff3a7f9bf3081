-- Removes a user's history and record of event ids, and leaves a tombstone in the log: from here on the archive and
-- training drop all that was logged of the user up to now. sweep.lua then removes it from the log itself.
--
-- All reads come before the first write, and the one write that can fail comes first: a failure leaves nothing half done.
--
-- KEYS  history, record, log: as append.lua has them
--       pending  hash of users (SHA-1) whose entries are being swept from this log: the id up to which they are. It does
--                not expire: whoever sweeps would move what is left of them behind their tombstones, and it would count.
--                Those that the log has left behind are dropped here, so that there are no more than entries in the log
--       tombstones  sorted set, by time, of those that the archiver has yet to honour: a full log drops its own
-- ARGV  user id, digest of it, log_length, log_min_s
-- Gives the numbers of events in the history and of ids in the record, and the tombstone's id.

local STRIDE = 5
local ENTRY = 12

local stored = redis.call('GET', KEYS[1])
local readable, window = pcall(cmsgpack.unpack, stored or '\144') -- the latter an empty array
local in_history = readable and type(window) == 'table' and math.floor(#window / STRIDE) or 0
local in_record = redis.call('STRLEN', KEYS[2]) / ENTRY

-- The tombstone's own id, which is later than all before it, is also what it says: sweep.lua may move it.
local now = redis.call('TIME')
local ms, number = now[1] * 1000 + math.floor(now[2] / 1000), 0
if redis.call('EXISTS', KEYS[3]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[3])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local last_ms, last_number = string.match(info[i + 1], '^(%d+)-(%d+)$')
      if tonumber(last_ms) >= ms then ms, number = tonumber(last_ms), last_number + 1 end
    end
  end
end
local upto = string.format('%.0f-%.0f', ms, number)

local function parts(id)
  local of_ms, of_number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(of_ms), tonumber(of_number)
end

local first = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)[1]
local first_ms, first_number = parts(first and first[1] or upto)
local over = {}
local flat = redis.call('HGETALL', KEYS[4])
for i = 1, #flat, 2 do
  local of_ms, of_number = parts(flat[i + 1])
  if of_ms < first_ms or (of_ms == first_ms and of_number < first_number) then over[#over + 1] = flat[i] end
end

redis.call('XADD', KEYS[3], upto, 'schema', '1', 'erased', ARGV[2], 'upto', upto)
-- An append keeps the log at its length; this bounds it where there are only erasures, but for entries too young to go.
local surplus = redis.call('XLEN', KEYS[3]) - 2 * ARGV[3]
if surplus > 0 then
  local oldest = string.format('%.0f', ms - 1000 * ARGV[4])
  redis.call('XTRIM', KEYS[3], 'MINID', '~', oldest, 'LIMIT', surplus)
end
redis.call('ZADD', KEYS[5], string.format('%.0f', ms), ARGV[2] .. ' ' .. upto)
redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -ARGV[3] - 1) -- there may be no archiver
for _, user in ipairs(over) do redis.call('HDEL', KEYS[4], user) end
redis.call('HSET', KEYS[4], redis.sha1hex(ARGV[1]), upto)
redis.call('DEL', KEYS[1], KEYS[2])
return { in_history, in_record, upto }
