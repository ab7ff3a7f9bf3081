-- Takes what was said about items, all of it or none.
--
-- KEYS  states   hash: item id -> JSON of its state; an item that is as in its bundle has none
--       changes  sorted set: item id -> number of the write that changed it last
--       version  number of the last write
-- ARGV  limit, then the items as a MessagePack array of {item id, state or ''}
-- Gives the number of this write, or 0 if more than `limit` items would have a state, or twice as many ever had one.

local items = cmsgpack.unpack(ARGV[2])
local limit, fresh, touched = tonumber(ARGV[1]), 0, 0
for _, item in ipairs(items) do
  if item[2] ~= '' and redis.call('HEXISTS', KEYS[1], item[1]) == 0 then fresh = fresh + 1 end
  if not redis.call('ZSCORE', KEYS[2], item[1]) then touched = touched + 1 end
end
if fresh > 0 and redis.call('HLEN', KEYS[1]) + fresh > limit then return 0 end
-- What is as in its bundle again keeps its place among the changes, for followers to hear of; those are bounded too.
if touched > 0 and redis.call('ZCARD', KEYS[2]) + touched > 2 * limit then return 0 end

local version = redis.call('INCR', KEYS[3])
for _, item in ipairs(items) do
  if item[2] == '' then
    redis.call('HDEL', KEYS[1], item[1])
  else
    redis.call('HSET', KEYS[1], item[1], item[2])
  end
  redis.call('ZADD', KEYS[2], version, item[1])
end
return version
