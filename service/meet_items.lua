-- Takes in which contexts items were met that no model knows: MessagePack arrays of ids, as they are to be kept.
--
-- KEYS  states, contexts, changes, floor, version as in put_items.lua; contexts: item id -> MessagePack array of its
--       contexts, the first ones
--       met       sorted set: item id -> number of the write that changed its contexts last
-- ARGV  limit of items, limit of contexts an item, limit of states, then a MessagePack array of {item id, context}
-- Gives the number of this write, or 0 if it changed nothing.
--
-- A context that is there already is not taken again, so that a repeated call is none. Beyond the limit of items those
-- that have changed least lately are forgotten, so that ids which nobody means to sell cannot fill the memory. Among the
-- changes the forgotten keep their place for a while, for followers to hear of.

local limit, full = tonumber(ARGV[1]), tonumber(ARGV[2])
local changed, order = {}, {}
for _, entry in ipairs(cmsgpack.unpack(ARGV[4])) do
  local item, context = entry[1], entry[2]
  local kept = changed[item]
  if not kept then
    local stored = redis.call('HGET', KEYS[2], item)
    kept = stored and cmsgpack.unpack(stored) or {}
  end
  local there = #kept >= full
  for _, one in ipairs(kept) do there = there or one == context end
  if not there then
    kept[#kept + 1] = context
    if not changed[item] then order[#order + 1] = item end
    changed[item] = kept
  end
end
if #order == 0 then return 0 end

local version = redis.call('INCR', KEYS[5])
for _, item in ipairs(order) do
  redis.call('HSET', KEYS[2], item, cmsgpack.pack(changed[item]))
  redis.call('ZADD', KEYS[6], version, item)
  redis.call('ZADD', KEYS[3], version, item)
end
-- No more than a page of followers holds of one write; the rest goes with the next ones.
local surplus = math.min(redis.call('ZCARD', KEYS[6]) - limit, 1000)
if surplus > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[6], surplus)
  for i = 1, #oldest, 2 do
    redis.call('HDEL', KEYS[2], oldest[i])
    redis.call('ZADD', KEYS[3], version, oldest[i])
  end
end
if redis.call('ZCARD', KEYS[3]) > 2 * tonumber(ARGV[3]) then
  forget_items(KEYS[1], KEYS[2], KEYS[3], KEYS[4], version, #order + 1)
end
return version
