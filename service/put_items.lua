-- Takes what was said about items, all of it or none.
--
-- KEYS  states   hash: item id -> JSON of its state; an item that is as in its bundle has none
--       changes  sorted set: item id -> number of the write that changed it last
--       version  number of the last write
-- ARGV  limit, then the items as a MessagePack array of {item id, state or ''}
-- Gives the number of this write, or 0 if more than `limit` items would be kept.

local items = cmsgpack.unpack(ARGV[2])
local fresh = 0
for _, item in ipairs(items) do
  if not redis.call('ZSCORE', KEYS[2], item[1]) then fresh = fresh + 1 end
end
if fresh > 0 and redis.call('ZCARD', KEYS[2]) + fresh > tonumber(ARGV[1]) then return 0 end

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
