-- wrk: requests of two sessions in turn; with -- RATE CONNECTIONS, so many requests a second in all.
local pause = 0
local turn = 0
local texts = {}
function init(arguments)
    for at = 1, 2 do
        wrk.headers["Cookie"] = "JSESSIONID=0123456789ABCDEF0123456789ABCDEF.n" .. at
        if arguments[1] == "close" then wrk.headers["Connection"] = "close" end
        texts[at] = wrk.format()
    end
    local rate = tonumber(arguments[1])
    if rate then pause = 1000 * tonumber(arguments[2]) / rate end
end
function request()
    turn = turn % 2 + 1
    return texts[turn]
end
function delay()
    if pause == 0 then return 0 end
    return math.floor(pause * 2 * math.random() + 0.5)
end
