-- Takes in which contexts items were met that no model knows: MessagePack arrays of ids, as they are to be kept.
--
-- KEYS  contexts  hash: item id -> MessagePack array of its contexts, the first ones
--       met       sorted set: item id -> number of the write that changed its contexts last
--       changes   sorted set: item id -> number of the write that changed it last in any way
--       version   number of the last write
-- ARGV  limit of items, limit of contexts an item, limit of changes, then a MessagePack array of {item id, context}
-- Gives the number of this write, or 0 if it changed nothing.
--
-- A context that is there already is not taken again, so that a repeated call is none. Beyond the limit of items those
-- that have changed least lately are forgotten, so that ids which nobody means to sell cannot fill the memory. Among the
-- changes the forgotten keep their place, for followers to hear of; once these are so many, no further items are taken.

local limit, full = tonumber(ARGV[1]), tonumber(ARGV[2])
local room = tonumber(ARGV[3]) - redis.call('ZCARD', KEYS[3])
local changed, order = {}, {}
for _, entry in ipairs(cmsgpack.unpack(ARGV[4])) do
  local item, context = entry[1], entry[2]
  local kept = changed[item]
  if not kept then
    local stored = redis.call('HGET', KEYS[1], item)
    kept = stored and cmsgpack.unpack(stored) or {}
  end
  local listed = changed[item] or redis.call('ZSCORE', KEYS[3], item)
  local there = #kept >= full or not (listed or room > 0)
  for _, one in ipairs(kept) do there = there or one == context end
  if not there then
    kept[#kept + 1] = context
    if not listed then room = room - 1 end
    if not changed[item] then order[#order + 1] = item end
    changed[item] = kept
  end
end
if #order == 0 then return 0 end

local version = redis.call('INCR', KEYS[4])
for _, item in ipairs(order) do
  redis.call('HSET', KEYS[1], item, cmsgpack.pack(changed[item]))
  redis.call('ZADD', KEYS[2], version, item)
  redis.call('ZADD', KEYS[3], version, item)
end
-- No more than a page of followers holds of one write; the rest goes with the next ones.
local surplus = math.min(redis.call('ZCARD', KEYS[2]) - limit, 1000)
if surplus > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[2], surplus)
  for i = 1, #oldest, 2 do
    redis.call('HDEL', KEYS[1], oldest[i])
    redis.call('ZADD', KEYS[3], version, oldest[i])
  end
end
return version
