-- Takes the head of a log away and appends it again without the entries of users who are being erased.
--
-- An entry that Redis deletes stays in the memory of its node, and so in the server's files, until the whole node is
-- deleted. So whole nodes are trimmed, and what was others' in them goes to the end: the order of a log means nothing.
-- One call moves a bounded number of entries, so that nobody waits long for it.
--
-- KEYS  log, pending, tombstones: as erase.lua has them
-- ARGV  user id, digest of it, id up to which the user is erased, id of the user's last entry up to there, entries to
--       move at once
-- Gives how many entries of the user were removed, and 1 when none is left, which ends the user's erasure.

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function after(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  return a_ms > b_ms or (a_ms == b_ms and a_seq > b_seq)
end

local function head()
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  return first and first[1]
end

local user, digest, upto, last = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local pending = {}
local flat = redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do pending[flat[i]] = flat[i + 1] end

local removed = 0
local first = head()
if first and not after(first, last) then
  local own = redis.sha1hex(user)
  pending[own] = pending[own] or upto -- another erasure of the same user may just have ended
  local count, page = tonumber(ARGV[5])
  repeat -- until it spans a whole node at least
    page = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', count)
    local limit = page[#page][1]
    if #page < count then -- all there is
      local ms, seq = string.match(limit, '^(%d+)-(%d+)$')
      limit = ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
    end
    redis.call('XTRIM', KEYS[1], 'MINID', '~', limit, 'LIMIT', 0)
    count = count * 2
    local now_first = head()
    local moved = now_first ~= first
    first = now_first
  until moved
  for _, entry in ipairs(page) do
    if first and not after(first, entry[1]) then break end -- it is still there, and so is all that follows
    local fields = entry[2]
    local erased_upto = fields[3] == 'user_id' and pending[redis.sha1hex(fields[4])]
    if erased_upto and not after(entry[1], erased_upto) then
      if fields[4] == user then removed = removed + 1 end
    else
      redis.call('XADD', KEYS[1], '*', unpack(fields))
    end
  end
end
local done = not first or after(first, last)
if done then
  -- Once more, for an archiver that has seen it before now had the server's files written anew too early. As another
  -- member that says the same (12-03 for 12-3): that archiver may be about to forget the one it has seen.
  redis.call('ZREM', KEYS[3], digest .. ' ' .. upto)
  redis.call('ZADD', KEYS[3], string.match(upto, '^%d+'), digest .. ' ' .. string.gsub(upto, '%-', '-0'))
  for other, erased_upto in pairs(pending) do
    local ended = other == redis.sha1hex(user) and erased_upto == upto
    if ended or not first or after(first, erased_upto) then redis.call('HDEL', KEYS[2], other) end
  end
end
return { removed, done and 1 or 0 }
