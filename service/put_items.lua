-- Takes what was said about items, all of it or none.
--
-- KEYS  states    hash: item id -> JSON of its state; an item that is as in its bundle has none
--       contexts  hash: of items that no model knows, as in meet_items.lua
--       changes   sorted set: item id -> number of the write that changed it last
--       floor     number of the newest write whose changes may be forgotten
--       version   number of the last write
-- ARGV  limit, then the items as a MessagePack array of {item id, state or ''}
-- Gives the number of this write, or 0 if more than `limit` items would have a state.

local items = cmsgpack.unpack(ARGV[2])
local limit, fresh = tonumber(ARGV[1]), 0
for _, item in ipairs(items) do
  if item[2] ~= '' and redis.call('HEXISTS', KEYS[1], item[1]) == 0 then fresh = fresh + 1 end
end
if fresh > 0 and redis.call('HLEN', KEYS[1]) + fresh > limit then return 0 end

local version = redis.call('INCR', KEYS[5])
for _, item in ipairs(items) do
  if item[2] == '' then
    redis.call('HDEL', KEYS[1], item[1])
  else
    redis.call('HSET', KEYS[1], item[1], item[2])
  end
  redis.call('ZADD', KEYS[3], version, item[1])
end
if redis.call('ZCARD', KEYS[3]) > 2 * limit then
  forget_items(KEYS[1], KEYS[2], KEYS[3], KEYS[4], version, #items + 1)
end
return version
