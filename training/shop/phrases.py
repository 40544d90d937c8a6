"""How people talk to the demo shop: templates, no code.

`(a|b|)` chooses one, `<name>` is a word of WORDS, `{slot}` is an entity that `training.shop.queries` fills in and
tags. Training queries use `known` templates alone; valid and test queries use `known` ones and, by halves that do not
overlap, `unseen` ones. Intents share words on purpose (order, card, back, size): what tells them apart is the sentence.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.shop.words import Said, said

WORDS: dict[str, Said] = {
    "parcel": said("order, package", "parcel, shipment"),
    "arrive": said("arrive, get here", "turn up, reach me"),
    "sent": said("sent, shipped", "dispatched, posted"),
    "broken": said("broken, damaged", "smashed, in pieces"),
    "return": said("return, send back", "give back"),
    "shop": said("store, shop", "branch, outlet"),
    "buy": said("buy, get", "purchase"),
    "want": said("want to, would like to, need to", "wish to, have to"),
}

BEFORE = said("hi, hello, hey, please, hi there", "good morning, excuse me, yo, quick question")
AFTER = said("please, thanks, thank you, pls", "cheers, asap, many thanks, if you can")


@dataclass(frozen=True, slots=True)
class Phrases:
    """Templates of one intent; rows are shared out in proportion to `weight`."""

    weight: float
    known: tuple[str, ...]
    unseen: tuple[str, ...]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


INTENTS: dict[str, Phrases] = {
    "product_search": Phrases(
        20,
        _lines("""
            {item}
            {item}
            {item}
            {item}
            {item}
            (show me|find|search) {item}
            i (want|need) {item}
            (looking|searching) for {item}
            {item} (for sale|online|offers)
            i would like to buy {item}
        """),
        _lines("""
            {item}
            {item}
            {item}
            (got to find|trying to find|on the hunt for) {item}
            let me see {item}
            could you suggest {item}
            i could do with {item}
            {item} as a (birthday present|present for my brother|surprise)
            what {item} can you recommend
        """),
    ),
    "product_type": Phrases(
        9,
        _lines("""
            {types}
            {types}
            {type}
            {type}
            (show me|find|search) {types}
            i (want|need) {a_type}
            looking for {types}
            all {types}
            {types} (for sale|online)
        """),
        _lines("""
            {types}
            {type}
            {types} (section|page|category)
            let me see (your|the) {types}
            could you suggest {a_type}
            browse {types}
            i am after {a_type}
            what {types} can you recommend
        """),
    ),
    "brand": Phrases(
        5,
        _lines("""
            {brand}
            {brand}
            {brand}
            {brand} (products|collection|sale)
            everything (by|from) {brand}
            show me {brand}
            the brand {brand}
            new (from|by) {brand}
        """),
        _lines("""
            {brand}
            {brand}
            {brand} (range|items|catalogue)
            what do you have (by|from) {brand}
            let me see the {brand} line
            all things {brand}
            i only wear {brand}
            stuff made by {brand}
        """),
    ),
    "availability": Phrases(
        7,
        _lines("""
            do you have {item} in stock
            is the {goods} in stock
            is the {goods} available in {size}
            do you still have the {goods}
            when will the {goods} be back in stock
            is the {goods} available in {another_colour}
            are {item} (available|in stock) now
            do you have the {goods} in {size}
            is the {goods} out of stock
            is the {goods} in stock in your {city} (store|shop)
            tell me when the {goods} is available again
            how many {types} do you have in stock
            any chance of the {goods} returning in {size}
            does the {goods} come back soon or is it gone for good
            have you run out of {item}
            restock date for the {goods}
        """),
        _lines("""
            has the {goods} sold out
            will you be getting more of the {goods}
            how many of the {goods} are left
            can i still get hold of the {goods}
            are you out of {item}
            let me know once the {goods} can be ordered again
            is there one {goods} left in {city}
            do you carry the {goods} in {another_colour}
        """),
    ),
    "product_question": Phrases(
        7,
        _lines("""
            is the {goods} {feature}
            what is the {goods} made of
            how (big|heavy|wide|long) is the {goods}
            does the {goods} come with a (guarantee|warranty)
            is the {goods} made of {material}
            does the {goods} run small
            what size should i order in the {goods}
            how do i (clean|wash) the {goods}
            where is the {goods} made
            what is the difference between the {goods} and the {another_type}
            are {brand} {types} {feature}
            can the {goods} be used (outside|every day)
            would you say the {goods} is {feature}
            is the {goods} genuine {material}
            what comes in the box with the {goods}
            are there instructions for the {goods}
        """),
        _lines("""
            which material is used for the {goods}
            what are the measurements of the {goods}
            how much does the {goods} weigh
            tell me more about the quality of the {goods}
            do reviewers think the {goods} is any good
            how long does the {goods} usually last
            who is the {goods} meant for
            does the {goods} fit true to size
        """),
    ),
    "order_status": Phrases(
        7,
        _lines("""
            where is my <parcel>
            where is my order {order_id}
            track (my|an|my last|my latest) (order|package)
            track order {order_id}
            has my order {order_id} been <sent>
            has my <parcel> been <sent> yet
            when will my <parcel> <arrive>
            what is the status of (my order|order) {order_id}
            (status of|check) order {order_id}
            i ordered {a_type} last week where is it
            is my order {order_id} on its way
            tracking number for order {order_id}
            did you (get|receive) my order (yesterday|last night|from this morning|)
            my tracking (link|page) shows nothing for {order_id}
            how far away is my <parcel>
            which day should i expect my {type}
            follow my <parcel>
            locate my <parcel>
        """),
        _lines("""
            any news on the {types} i bought
            still waiting for my <parcel>
            {order_id} has it left the warehouse
            can you see what is happening with {order_id}
            is my stuff coming today
            i (paid|bought {a_type}) on (monday|friday) and nothing has come what is going on
            update on {order_id}
            has the courier picked up my {type} yet
            was my purchase (of {types} |)confirmed
            my {goods} should have been here yesterday where is it
        """),
    ),
    "order_change": Phrases(
        6,
        _lines("""
            cancel my (order|last order|order from today|order from yesterday)
            cancel order {order_id}
            i <want> cancel my order {order_id}
            change the (delivery address|address) (of|for) my order
            change the address of order {order_id}
            can i add {a_type} to my order {order_id}
            change the size of the {type} in my order to {size}
            i ordered the wrong colour change it to {colour}
            remove the {type} from my order
            send order {order_id} to my office and not to my home
            can i still (change|edit|update) (my order|my last order|an order i made today)
            please do not ship order {order_id} i no longer want it
            stop order {order_id} before it leaves
            i typed the wrong street when i checked out {order_id}
            i moved house so deliver {order_id} somewhere else
            i have changed my mind about order {order_id} do not send it
        """),
        _lines("""
            i (made a mistake|picked the wrong thing) when ordering can it (still |)be (corrected|fixed)
            is it too late to put more {types} into (my basket from yesterday|what i ordered yesterday)
            i (pressed|clicked|hit) buy twice so (drop|take out) one of the two {types}
            swap the {colour} {type} for {another_colour} before you post it
            call off my purchase (of {types}|from this morning|from last night)
            make it two {types} and not one in {order_id}
            can my neighbour's address be used for {order_id}
            amend {order_id}
        """),
    ),
    "delivery": Phrases(
        6,
        _lines("""
            how long does (delivery|shipping|express delivery|standard delivery) take (normally|)
            how much is (shipping|delivery) to {city}
            do you (ship|deliver) to {city}
            what are (your|the) (delivery|shipping) (times|costs|options|charges)
            is (delivery|shipping|express delivery) (really |)free
            do you (offer|have) (next day|express|same day|weekend) (delivery|shipping)
            which (courier|delivery company) do you (use|work with)
            do you (deliver|ship) (on saturdays|on sundays|on weekends|on holidays|in the evening)
            is shipping free from {amount}
            delivery time for {types} to {city}
            can i (choose|pick|change) (a|the) delivery (day|time|slot)
            (shipping|delivery) (costs|prices|abroad|fees|times)
            how soon do (things|{types}) usually come after ordering
            can you bring large items like {types} upstairs
            (from which amount|above what sum) is postage (free|on you)
            is {city} within the area you serve
            do i have to be (at home|there) (for the courier|when the driver comes)
        """),
        _lines("""
            what do you charge for postage (of {a_type}|on small things|)
            if i (order|buy) {a_type} (today|now|tonight) will it be here by (friday|monday|the weekend)
            do you send ({types} |)(abroad|overseas|to other countries)
            can (someone else|my neighbour|my flatmate) accept it for me (if i am at work|when i am out)
            are (evening|morning|weekend) drop offs possible
            who carries your (parcels|heavy parcels|parcels to {city})
            how fast can you get {a_type} to {city}
            can i have ({types}|things) left (at a pick up point|with the neighbours)
        """),
    ),
    "returns": Phrases(
        7,
        _lines("""
            how do i <return> (an item|something|a present|{a_type})
            i <want> <return> my {type}
            what is (your|the) (return|refund|exchange) policy (for {types}|)
            how (long|many days) do i have to return {a_type}
            can i return {a_type} without the receipt
            return label for order {order_id}
            when do i get my (refund|money back|refund for the {type})
            where is my refund for order {order_id}
            i <want> exchange my {type} for {size}
            is returning (something |{a_type} |)free
            can i return (sale items|worn {types}|opened {types})
            the {type} does not fit how do i exchange it
            refund for order {order_id}
            have you received the {type} i sent back
            money back for {order_id}
            how long until the money is on my account again after i sent the {type} to you
            i need a form to post the {type} back
            the {goods} is not for me what now
        """),
        _lines("""
            the {goods} is too tight can i have it one size up
            i do not like the {type} how do i get rid of it
            do i pay postage when (something goes|{types} go) back to you
            i bought the wrong {type} and it is already here
            can i bring the {type} back to the <shop> in {city}
            when does my right to send ({types}|things) back end
            is it ok to take back {a_type} i tried on
            reimbursement for {order_id}
        """),
    ),
    "complaint": Phrases(
        6,
        _lines("""
            my {goods} arrived <broken>
            the {type} in order {order_id} is <broken>
            i <want> (make a complaint|complain|file a complaint) (about your service|about the {type}|)
            the {goods} stopped working after (two days|a week|a month)
            you sent me the wrong {type}
            there is a (hole|stain|scratch) in my new {type}
            the (courier|driver|delivery man) was (rude|very late|very rude|unfriendly)
            your (customer service|support|hotline) is (terrible|bad|awful|a disaster)
            my order {order_id} is missing {a_type}
            the (box|parcel|package) (was|came|arrived) (empty|open|half empty|wet)
            the {goods} looks nothing like the picture
            i am (unhappy|not happy) with order {order_id}
            (worst|most awful) (shop|company|service) (ever|i have ever seen|of all)
            the driver (threw|tossed|kicked) my <parcel> over the (fence|wall|hedge)
            this {type} is a piece of rubbish
            let me (speak|talk) to your (boss|manager) (i have had enough|this is a scandal)
        """),
        _lines("""
            what a joke the {goods} fell apart (at once|in my hands|on the first day)
            the {type} i got is not what i picked
            nobody (answers|replies to) my (emails|letters|calls|messages) (since monday|for weeks|)
            half of {order_id} was not in the carton
            i am really disappointed with the {goods}
            the {goods} came with a crack
            i was promised {a_type} and got a {another_type}
            the zip of the {type} broke on day one
            the {goods} smells awful
        """),
    ),
    "payment": Phrases(
        6,
        _lines("""
            can i pay (for {types} |)(with|by) (credit card|debit card|bank transfer|cash|card)
            which (payment methods|cards|credit cards|ways to pay) do you (accept|take|support)
            my (card|payment|credit card|debit card) was (declined|refused|rejected) (again|twice|)
            can i pay (for {a_type} |)in (instalments|monthly instalments|three parts)
            can i pay (for {a_type} |)(later|on delivery|next month|after delivery)
            i was charged twice for order {order_id}
            send me an invoice for order {order_id}
            is it (safe|secure) to pay (online|with my card|by credit card|here)
            when (will|do) you (charge|debit) my (card|account|credit card)
            (payment|card payment|my payment) (failed|error|does not work|is stuck) (again|)
            do you (charge|take|add) a fee for (card payment|paying by card|credit cards)
            i need a receipt for order {order_id}
            why did you take the money (two times|again|before i confirmed)
            do you take (american|british|swiss) money
            can my (company|employer|school) be (invoiced|billed) (for {types}|)
            which currencies can (i|we|one) (use|choose|settle in)
        """),
        _lines("""
            the checkout does not (accept|like|want) my (visa|amex|bank details)
            split the cost of {a_type} over six months
            is there a way to settle the bill (afterwards|at the end of the month|once the {type} is here)
            my bank says the (transaction|transfer) (did not go through|was blocked)
            i cannot get past the checkout it says (card not valid|card expired|wrong security code)
            bill with vat for {order_id}
            how (is|are) my (card number|bank details) (protected|stored)
            does the amount leave my (bank account|account) (right away|at once|today)
            can i spread (what i owe|the amount|the price of {a_type})
        """),
    ),
    "gift_card": Phrases(
        5,
        _lines("""
            i <want> <buy> (a gift card|two gift cards|gift cards) (for my father|as a present|)
            gift card (of|for) {amount}
            (what is|show me|check) the balance (of|on) my gift card
            how do i (use|redeem|activate) (a|my|this) gift card (online|)
            my gift card (code|number|pin) (does not work|is not accepted|is invalid)
            (do|when do) (your gift cards|gift cards|old gift cards) expire
            can i (send|give) (a gift card|gift cards) (by email|by post|to a friend)
            can i use (two|three|several) gift cards for (one order|{a_type})
            i (lost|cannot find|deleted) my gift card (email|code|)
            do you sell gift cards in your {city} store
            gift card for (a friend|my mother|christmas)
            print (a|my|the) gift voucher (at home|for my boss|again|)
            a present card with {amount} on it
            (e-gift|digital voucher) for my (sister|nephew|best friend)
        """),
        _lines("""
            how much is left on (my|this|the) voucher (from last year|)
            i got a voucher (for my birthday|from work|for christmas) where do i (enter|type) it
            (for how long|until when) is (a|my|this) voucher (valid|good)
            can i (top up|put more money on) (a|my|the) gift card
            the code i scratched free (on the present card|on the voucher) is (not accepted|wrong)
            may a voucher be spent in {city}
            is it possible to turn (my|a) voucher into (cash|money|{a_type})
            where do i see what is still on the (present card|voucher) my (aunt|boss|team) gave me
        """),
    ),
    "store": Phrases(
        5,
        _lines("""
            where is your (nearest|closest) <shop>
            is there any <shop> in {city}
            opening hours (in|of your store in) {city}
            when does the {city} <shop> (open|close)
            is the {city} <shop> open on (sunday|monday|holidays)
            address of your <shop> in {city}
            phone number of the {city} <shop>
            is there parking at the {city} <shop>
            stores (in|near) {city}
            how do i get to your <shop> in {city}
            can i try on {types} in the <shop>
            where can i see your {types} in real life
            how late are you open in {city}
            any physical location in {city}
            which floor of the mall in {city} are you on
        """),
        _lines("""
            until what time can i come by in {city}
            which bus goes to your place in {city}
            are you open (tonight|right now|on easter|late) (in {city}|)
            is there one of your (shops|places) (around here|near the station|in this town)
            do you have a showroom (for {types}|in {city})
            may i bring my dog into the <shop>
            closing time {city}
            {city} <shop>
        """),
    ),
    "account": Phrases(
        5,
        _lines("""
            i (forgot|lost|do not remember) my (password|user name|login)
            (reset|change|recover) (my|the|a lost) password
            i (cannot|can not|can no longer) (log in|sign in|log into my account|sign in to my account)
            (change|update|correct) my (email address|phone number|password|name|profile)
            (delete|close|remove) (my|this) (account|customer account)
            (create|open|make) (an|a new|my) account (for my company|for my wife|)
            (change|update|correct) the address (in|of) my (account|profile)
            how do i unsubscribe from (the newsletter|your emails)
            my (account|login|profile) (is|was) (locked|blocked|suspended)
            log (me |)out (of|on) (all|my other) devices
            do i need an account to (order|order {types}|buy something|shop)
            save {a_type} to my wish list
            how can (i|my wife|a company) (register|sign up|join)
            (two factor|login|security) code never comes
            i have a new (email|mobile number) how do i tell you
            (close|shut down) my (customer profile|membership)
        """),
        _lines("""
            it says my (login|user name|pin) is (wrong|unknown)
            stop (mailing|sending) me (your|these) (offers|advertisements)
            (remove|erase) (all the|every bit of) data you (keep|have) about me
            i (got married|moved) and have a new (last name|postal address) (for your records|in my profile)
            someone (hacked|broke into|stole) my (profile|user profile|login)
            (become|be) a (member|registered customer)
            can i (shop|check out) as a guest
            where do i see (what i bought in the past|my old purchases)
        """),
    ),
    "oos": Phrases(
        8,
        _lines("""
            what is the weather in {city}
            will it rain (today|tomorrow|this weekend)
            tell me (a joke|a story|something funny|a riddle)
            set (an alarm|a timer) for (ten minutes|six in the morning|one hour)
            who won the (football match|election|tennis final) (yesterday|last night|on sunday)
            what time is it in {city}
            book a (table|hotel|flight) in {city}
            play (some music|some jazz|the radio|my favourite song)
            what is the (capital|population|largest city) of (france|peru|canada|japan)
            translate {type} into (spanish|german|chinese)
            how old (are you|is the universe|is the queen)
            call my (mother|brother|wife|dentist)
            remind me to (buy milk|water the plants|feed the cat)
            who invented the {type}
            recipe for (pancakes|tomato soup|apple pie|fried rice)
            how many people live in {city}
            what is (12 times 7|9 plus 15|the square root of 81)
            write a poem about {types}
            turn (off|on|down) the (lights|radio|heating)
            is there a train to {city} tonight
            what is the (meaning of life|speed of light|longest river)
            how do i (tie a tie|learn to swim|boil an egg|grow tomatoes)
            who is the (president|mayor of {city}|richest man)
            order me a (taxi|pizza|cab to the airport)
            how tall is (mount everest|the eiffel tower|a giraffe)
            sing me a song about {a_type}
            are you (a robot|human|married)
            how many calories are in (a banana|an egg|a hamburger)
            stock market prices (today|yesterday)
            when does the next bus leave from {city}
            how far is {city} from {another_city}
            is there (life on mars|snow in the alps)
            return the call i missed (yesterday|from my boss)
            what size is the (moon|sun|pacific ocean)
        """),
        _lines("""
            do i need {a_type} in {city} today
            convert {amount} to yen
            what is a good name for (a cat|a baby|a boat)
            directions to (the airport|{city}|the hospital)
            why is the (sky blue|sea salty|grass green)
            how do you say (hello|thank you) in (japanese|greek)
            read me (the news|a bedtime story|my messages)
            my (back|knee|tooth) hurts which doctor should i see
            when was the first {type} made
            good (night|luck|job robot)
            cancel my (dentist appointment|flight|meeting at noon)
            how do (birds fly|planes fly|magnets work)
            what should i (cook for dinner|sing at the party|read next)
            spell the word {type}
            which film won the oscar (this year|in 1999)
            reserve a table for (two|six) tonight
            how do i (change a flat tyre|get rid of ants|lose weight)
            track the flight to {city}
            what does it cost to live in {city}
            block this (phone number|caller)
        """),
    ),
}
