-- Divides a total among processes. KEYS[1] is a hash: for each process "request held wanted until".
-- ARGV: the id of the process, the number of its request, what it holds and wants, the total, and for how many
-- milliseconds it is known without a further request. Returns what the process may hold now.
--
-- What is recorded of a process is never less than what it holds: it is told of a smaller share first, and reports
-- later that it holds that. So all together never hold more than the total, whenever an answer arrives.
local id, request, held, wanted = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local total, kept = tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local entries = redis.call('HGETALL', KEYS[1])
local is_known, pause, others, demands = false, 0, 0, {}
for n = 1, #entries, 2 do
  local last, h, w, til = string.match(entries[n + 1], '^(%d+) (%d+) (%d+) (%d+)$')
  if entries[n] == 'pause' then
    pause = tonumber(entries[n + 1])
  elseif entries[n] == id then
    -- On a connection that has ended, and behind one of the next connection.
    if tonumber(last) >= request then return held end
    is_known = true
  elseif tonumber(til) <= now then
    redis.call('HDEL', KEYS[1], entries[n])
  else
    others = others + h
    demands[#demands + 1] = tonumber(w)
  end
end

-- The data was lost, so others may hold what is not recorded yet: none gets more until they have had time to tell.
if not is_known and request > 1 then
  pause = now + kept
  redis.call('HSET', KEYS[1], 'pause', string.format('%.0f', pause))
end

-- Max-min fair: those that want less than an equal part get what they want, the others equal parts of the rest.
local least = total / (16 * (#demands + 1))
demands[#demands + 1] = wanted
for n, demand in ipairs(demands) do demands[n] = math.max(demand, least) end
local own = demands[#demands]
table.sort(demands)
local left, level = total, nil
for n, demand in ipairs(demands) do
  local part = left / (#demands - n + 1)
  if demand > part then level = part break end
  left = left - demand
end
local share = level and math.min(own, level) or own + left / #demands
share = math.min(share, total - others)
if now < pause then share = math.min(share, math.max(held, least)) end
share = math.max(math.floor(share), 0)

local entry = string.format('%.0f %.0f %.0f %.0f', request, math.max(held, share), wanted, now + kept)
redis.call('HSET', KEYS[1], id, entry)
redis.call('PEXPIRE', KEYS[1], 2 * kept)
return share
