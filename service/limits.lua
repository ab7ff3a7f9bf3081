-- Takes tokens out of a bucket that fills evenly, as many as are there, at most as many as are wanted.
--
-- The server's own clock decides, so that workers of several machines agree. A bucket that is full need not be stored.
--
-- What passed without a token while this server did not answer is accounted for here: against all that has flowed in
-- since, so that workers can give account one after the other, and if that does not suffice as a debt, of one second's
-- tokens at most, lest a client be shut out for long.
--
-- Called again after a lost reply it takes again: that errs towards fewer requests, never more.
--
-- KEYS  bucket  two numbers, MessagePack: tokens, and the millisecond at which there were so many
-- ARGV  size (tokens of a full bucket), fill_ms (in which an empty one becomes full), wanted, spent (without a token)
-- Gives the tokens taken, and a thousand times those that are left.

local size, fill_ms, wanted, spent = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local tokens = size
local stored = redis.call('GET', KEYS[1])
if stored then
  local before, at_ms = unpack(cmsgpack.unpack(stored))
  tokens = before + math.max(0, now_ms - at_ms) * size / fill_ms
end

if spent == 0 then tokens = math.min(size, tokens) end
tokens = math.max(tokens - spent, -1000 * size / fill_ms, -size)
local taken = math.min(wanted, math.max(0, math.floor(tokens)))
if taken + spent > 0 then
  tokens = tokens - taken
  redis.call('SET', KEYS[1], cmsgpack.pack({ tokens, now_ms }), 'PX', 2 * fill_ms)
end
return { taken, math.floor(tokens * 1000) }
