-- Makes room among the changes: those of items that are as in their bundle again are forgotten, the oldest first.
--
-- `most` of them are looked at, and items that have something to say count as changed by this write. Who follows the
-- changes and has not come as far as `floor` may have missed one that was forgotten, and reads all of them again.
local function forget_items(states, contexts, changes, floor, version, most)
  local oldest = redis.call('ZPOPMIN', changes, most)
  for i = 1, #oldest, 2 do
    if redis.call('HEXISTS', states, oldest[i]) == 1 or redis.call('HEXISTS', contexts, oldest[i]) == 1 then
      redis.call('ZADD', changes, version, oldest[i])
    end
  end
  redis.call('SET', floor, oldest[#oldest])
end

