-- Takes tokens out of a bucket that fills evenly, as many as are there, at most as many as are wanted.
--
-- The server's own clock decides, so that workers of several machines agree; where it was set back, a bucket fills from
-- now on. A bucket that is full is not stored.
-- What is owed, having passed while this server did not answer, can exceed what is there if another worker had an answer;
-- then it is a debt, of one second's tokens at most, lest a client be shut out for long.
-- Called again after a lost reply it takes again: that errs towards fewer requests, never more.
--
-- KEYS  bucket  two numbers, MessagePack: tokens, and the millisecond at which there were so many
-- ARGV  size (tokens of a full bucket), fill_ms (in which an empty one becomes full), wanted, owed
-- Gives the tokens taken, and a thousand times those that are left.

local size, fill_ms, wanted, owed = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local tokens, at_ms = size, now_ms
local stored = redis.call('GET', KEYS[1])
if stored then
  local before
  before, at_ms = unpack(cmsgpack.unpack(stored))
  tokens = math.min(size, before + math.max(0, now_ms - at_ms) * size / fill_ms)
end

tokens = math.max(tokens - owed, -1000 * size / fill_ms)
local taken = math.min(wanted, math.max(0, math.floor(tokens)))
if taken + owed > 0 or at_ms > now_ms then
  tokens = tokens - taken
  local full_ms = math.max(1, math.ceil((size - tokens) * fill_ms / size))
  redis.call('SET', KEYS[1], cmsgpack.pack({ tokens, now_ms }), 'PX', full_ms)
end
return { taken, math.floor(tokens * 1000) }
