"""What the demo shop sells and how people name it: word lists, no code. Every brand is invented.

Where a list has an `unseen` half, training queries never use it: only valid and test queries do, so that a model is
asked for meaning and not only for memory.
"""

from __future__ import annotations

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@dataclass(frozen=True, slots=True)
class Said:
    """Ways to say one thing: the ones that training queries use, and those that only valid and test queries use."""

    known: tuple[str, ...]
    unseen: tuple[str, ...] = ()


def said(known: str, unseen: str = "") -> Said:
    """Both halves from comma-separated text."""
    return Said(_words(known), _words(unseen))


@dataclass(frozen=True, slots=True)
class SizeSystem:
    """Sizes in rising order, how a title writes one, and how queries do.

    {v} is the value, {n} its number, {joined} the value without its space, {us} and {spoken} its other names.
    """

    values: tuple[str, ...]
    title: str
    ways: Said
    larger_costs_more: bool = False


SIZES: dict[str, SizeSystem] = {
    "shoe": SizeSystem(
        tuple(str(size) for size in range(36, 49)),
        "EU {v}",
        said("size {v}, size {us}, us {us}, {v}", "eu {v}, us size {us}"),
    ),
    "clothing": SizeSystem(
        _words("XS, S, M, L, XL"), "{v}", said("size {v}, {spoken}, size {spoken}, {v}", "{spoken} size")
    ),
    "waist": SizeSystem(_words("28, 30, 32, 34, 36, 38"), "W{v}", said("w{v}, size {v}, waist {v}", "{v} waist")),
    "inch": SizeSystem(
        _words("24, 27, 32, 43, 50, 55, 65, 75"), '{v}"', said('{v} inch, {v}", {v}in', "{v}-inch, {v} inches"), True
    ),
    "laptop": SizeSystem(
        _words("13, 14, 15, 16, 17"), '{v}"', said('{v} inch, {v}", {v}in', "{v}-inch, {v} inches"), True
    ),
    "storage": SizeSystem(
        _words("64 GB, 128 GB, 256 GB, 512 GB, 1 TB, 2 TB"), "{v}", said("{v}, {joined}", "{joined} storage"), True
    ),
    "volume": SizeSystem(_words("50 ml, 100 ml, 250 ml, 500 ml, 750 ml"), "{v}", said("{v}, {joined}"), True),
    "litre": SizeSystem(_words("0.5 l, 1 l, 1.5 l, 2 l, 3 l"), "{v}", said("{v}, {joined}, {n} litre"), True),
    "weight": SizeSystem(_words("1 kg, 2 kg, 5 kg, 10 kg, 15 kg"), "{v}", said("{v}, {joined}", "{n} kilo"), True),
    "bed": SizeSystem(_words("single, double, queen, king"), "{v}", said("{v}, {v} size", "{v}-size"), True),
    "length": SizeSystem(_words("80 cm, 120 cm, 160 cm, 200 cm, 240 cm"), "{v}", said("{v}, {joined}"), True),
    "persons": SizeSystem(_words("1 person, 2 person, 4 person, 6 person"), "{v}", said("{v}", "{n} man"), True),
    "pieces": SizeSystem(_words("100 pieces, 500 pieces, 1000 pieces"), "{v}", said("{v}, {n} piece"), True),
}

SPOKEN_SIZES = {"XS": "extra small", "S": "small", "M": "medium", "L": "large", "XL": "extra large"}


@dataclass(frozen=True, slots=True)
class ProductType:
    """One type of product: `said` its names in queries (the first is the catalogue's own), `price` the usual one."""

    name: str
    department: str
    price: float
    size: str | None
    materials: tuple[str, ...]
    said: Said


def _type(department: str, price: float, size: str | None, materials: str, names: str, unseen: str = "") -> ProductType:
    words = said(names, unseen)
    return ProductType(words.known[0], department, price, size, _words(materials), words)


PRODUCT_TYPES: tuple[ProductType, ...] = (
    _type("shoes", 80, "shoe", "leather, canvas, mesh, suede", "sneaker, trainer", "kicks, gym shoe"),
    _type("shoes", 95, "shoe", "mesh, knit", "running shoe, runner", "jogging shoe"),
    _type("shoes", 120, "shoe", "leather, suede, rubber", "boot, ankle boot", "bootie"),
    _type("shoes", 45, "shoe", "leather, cork, rubber", "sandal", "flip flop"),
    _type("shoes", 28, "shoe", "wool, felt, cotton", "slipper", "house shoe"),
    _type("clothing", 20, "clothing", "cotton, linen, viscose", "t-shirt, tee, tshirt", "tank top"),
    _type("clothing", 45, "clothing", "cotton, linen, flannel", "shirt, button-up shirt", "blouse"),
    _type("clothing", 60, "clothing", "cotton, silk, linen, viscose", "dress, summer dress", "gown"),
    _type("clothing", 70, "waist", "denim, cotton", "jeans, pair of jeans", "denims"),
    _type("clothing", 110, "clothing", "leather, nylon, denim, wool", "jacket, rain jacket", "anorak, windbreaker"),
    _type("clothing", 150, "clothing", "wool, down, cashmere", "coat, winter coat", "parka"),
    _type("clothing", 50, "clothing", "cotton, fleece", "hoodie, hooded sweater", "sweatshirt"),
    _type("clothing", 65, "clothing", "wool, cashmere, cotton", "sweater, jumper", "pullover, cardigan"),
    _type("clothing", 35, "clothing", "cotton, nylon, viscose", "leggings, tights", "yoga pants"),
    _type("clothing", 12, "clothing", "cotton, wool, bamboo", "socks, pair of socks", "ankle socks"),
    _type("accessories", 70, None, "leather, nylon, canvas", "backpack, rucksack", "school bag, daypack"),
    _type("accessories", 130, None, "leather, canvas, suede", "handbag, shoulder bag", "tote bag, purse"),
    _type("accessories", 40, None, "leather, canvas", "wallet", "card holder, billfold"),
    _type("accessories", 30, None, "leather, suede", "belt"),
    _type("accessories", 85, None, "acetate, titanium", "sunglasses, pair of sunglasses", "shades"),
    _type("accessories", 160, None, "stainless steel, titanium, leather", "watch, wristwatch", "timepiece"),
    _type("accessories", 25, None, "wool, cotton, felt", "beanie, hat", "baseball cap"),
    _type("accessories", 28, None, "wool, silk, cashmere", "scarf", "shawl"),
    _type("accessories", 24, None, "nylon", "umbrella", "brolly"),
    _type("electronics", 620, "inch", "", "tv, television", "flat screen, telly"),
    _type("electronics", 900, "laptop", "aluminium", "laptop, notebook computer", "ultrabook"),
    _type("electronics", 380, "storage", "aluminium", "tablet, tablet computer"),
    _type("electronics", 560, "storage", "aluminium, glass", "smartphone, mobile phone", "cell phone, handset"),
    _type("electronics", 110, None, "", "headphones, headset", "earphones, earbuds"),
    _type("electronics", 480, None, "", "camera, digital camera", "camcorder"),
    _type("electronics", 260, "inch", "", "monitor, computer monitor", "computer screen"),
    _type("electronics", 65, None, "aluminium", "keyboard, computer keyboard"),
    _type("electronics", 90, None, "", "speaker, loudspeaker", "soundbar"),
    _type("electronics", 75, "storage", "aluminium", "external drive, hard drive", "ssd"),
    _type("electronics", 25, None, "", "phone charger, charging cable", "power adapter"),
    _type("furniture", 750, None, "leather, velvet, linen", "sofa, couch", "settee, loveseat"),
    _type("furniture", 240, "length", "oak, pine, walnut, steel", "desk, writing desk", "work table"),
    _type("furniture", 190, None, "leather, mesh, velvet", "office chair, desk chair", "swivel chair"),
    _type("furniture", 130, "length", "oak, pine, walnut", "bookshelf, bookcase", "shelving unit"),
    _type("furniture", 60, None, "brass, ceramic, steel", "lamp, table lamp", "desk light"),
    _type("furniture", 160, "length", "wool, cotton, jute", "rug, carpet", "floor mat"),
    _type("bedroom", 420, "bed", "foam, latex", "mattress", "memory foam topper"),
    _type("bedroom", 55, "bed", "cotton, linen, satin", "duvet cover, bedding set", "bed linen"),
    _type("bedroom", 35, None, "down, foam, cotton", "pillow", "cushion"),
    _type("bedroom", 45, "length", "linen, velvet, cotton", "curtains, pair of curtains", "drapes"),
    _type("kitchen", 45, None, "cast iron, steel, ceramic", "frying pan", "skillet"),
    _type("kitchen", 14, None, "ceramic, glass, porcelain", "mug, coffee mug", "coffee cup"),
    _type("kitchen", 80, None, "steel, ceramic", "knife set, kitchen knife", "chef's knife"),
    _type("kitchen", 22, "volume", "steel, glass, aluminium", "water bottle, drinking bottle", "thermos flask"),
    _type("appliances", 42, "litre", "stainless steel, glass", "kettle, electric kettle", "water boiler"),
    _type("appliances", 85, "litre", "glass, steel", "blender", "smoothie maker"),
    _type("appliances", 50, None, "stainless steel", "toaster", "sandwich maker"),
    _type("appliances", 210, None, "", "vacuum cleaner, vacuum", "hoover"),
    _type("appliances", 180, "litre", "stainless steel", "coffee machine, coffee maker", "espresso machine"),
    _type("beauty", 11, "volume", "", "shampoo", "hair wash"),
    _type("beauty", 70, "volume", "", "perfume, eau de parfum", "fragrance, cologne"),
    _type("beauty", 26, "volume", "", "face cream, moisturiser", "face lotion"),
    _type("beauty", 17, "volume", "", "sunscreen, sun cream", "sunblock"),
    _type("sports", 32, None, "cork, rubber", "yoga mat, exercise mat"),
    _type("sports", 40, "weight", "cast iron, rubber, neoprene", "dumbbell, hand weight", "kettlebell"),
    _type("sports", 190, "persons", "nylon, cotton", "tent, camping tent"),
    _type("sports", 85, None, "down, nylon", "sleeping bag"),
    _type("sports", 640, None, "aluminium, steel, carbon", "bicycle, bike", "mountain bike"),
    _type("toys", 18, "pieces", "wood, cardboard", "puzzle, jigsaw puzzle", "jigsaw"),
    _type("toys", 34, None, "wood, cardboard", "board game, family game", "card game"),
    _type("toys", 22, None, "plush, cotton", "teddy bear, stuffed animal", "cuddly toy"),
    _type("toys", 38, "pieces", "wood", "building blocks, toy bricks", "construction set"),
    _type("pets", 34, "weight", "", "dog food, puppy food", "kibble"),
    _type("pets", 15, "weight", "clay, wood", "cat litter", "kitty litter"),
    _type("pets", 18, None, "leather, nylon", "dog leash, dog lead", "dog collar"),
    _type("pantry", 14, "weight", "", "coffee beans, ground coffee", "espresso beans"),
    _type("pantry", 12, "volume", "", "olive oil", "cooking oil"),
    _type("pantry", 9, None, "", "green tea, black tea", "herbal tea"),
)

UNCOUNTABLE = frozenset(
    _words(
        "shampoo, hair wash, face cream, moisturiser, face lotion, sunscreen, sun cream, sunblock, dog food, "
        "puppy food, kibble, cat litter, kitty litter, ground coffee, olive oil, cooking oil, green tea, black tea, "
        "herbal tea, bed linen, eau de parfum"
    )
)

BRANDS: dict[str, Said] = {
    "shoes": said("Velloro, Krasthelm, Zentavi, Brindlow, Stridon, North Quay", "Fjalvik, Marquenne"),
    "clothing": said("Solvanta, Tildora, Quillmont, Havrick, Nuvessa, North Quay, Iron Willow", "Orlindo, Pemmerly"),
    "accessories": said("Orvanelle, Tildora, Krasthelm, Copper Finch, Belmarque", "Vandessa, Quorrin"),
    "electronics": said("Voltrique, Quantavo, Nexorin, Lumivox, Tekkara, Ombrix, Sonarque", "Hexalune, Kibotek"),
    "furniture": said("Hygglund, Brackenwood, Lindqvara, Stuvholt, Iron Willow", "Ebbsund, Tannhof"),
    "bedroom": said("Mellowick, Lindqvara, Dunmora, Slumbrelle", "Casavine, Loftwell"),
    "kitchen": said("Cucinelle, Braizen, Steelhart, Copper Finch, Panwick", "Gratelle, Morvane"),
    "appliances": said("Turbinox, Kettleby, Zestora, Voltrique, Aromello", "Braumix, Whirrin"),
    "beauty": said("Pureluma, Belvienne, Dermavale, Florisse, Saltmoor", "Auralie, Nectarine Lane"),
    "sports": said("Trekvar, Summitral, Stridon, Ironvale, Wavecroft", "Alpenko, Gravellon"),
    "toys": said("Tinkerloo, Wobblekin, Puzzlara, Little Otter", "Bramblebee, Zoomikin"),
    "pets": said("Pawlish, Whiskora, Barkello, Nibblow", "Snoutly, Furrow & Tail"),
    "pantry": said("Montebruma, Granello, Cafarra, Terrabona", "Mielora, Chaiwick"),
}

MODELS = _words("Alto, Pico, Terra, Nova, Luna, Vento, Riva, Duna, Cielo, Brio, Onda, Sole, Faro, Nido, Lago, Corvo")

COLOURS: dict[str, Said] = {
    "black": said("black, jet black", "pitch black, ebony"),
    "white": said("white, off white", "ivory, snow white"),
    "grey": said("grey, gray, charcoal", "slate, ash grey"),
    "silver": said("silver", "silvery"),
    "red": said("red, bright red", "crimson, scarlet"),
    "burgundy": said("burgundy, dark red, wine red", "maroon"),
    "blue": said("blue, light blue, sky blue", "azure, cobalt"),
    "navy": said("navy, navy blue, dark blue", "midnight blue"),
    "green": said("green, emerald", "forest green, lime green"),
    "olive": said("olive, khaki, olive green", "army green"),
    "brown": said("brown, dark brown, chocolate", "chestnut, tan"),
    "beige": said("beige, cream", "sand, ecru"),
    "pink": said("pink, rose", "fuchsia, hot pink"),
    "purple": said("purple, violet", "lilac, lavender"),
    "yellow": said("yellow, mustard", "lemon yellow"),
    "orange": said("orange", "apricot, tangerine"),
}

COLOUR_FAMILIES = ({"black", "grey"}, {"red", "burgundy"}, {"blue", "navy"}, {"green", "olive"}, {"white", "beige"})

PALETTES: dict[str, tuple[str, ...]] = {
    "electronics": _words("black, white, grey, silver, blue"),
    "appliances": _words("black, white, silver, red, beige"),
    "furniture": _words("black, white, grey, brown, beige, olive, navy, yellow"),
    "sports": _words("black, blue, green, purple, orange, red, grey"),
    "beauty": (),
    "pantry": (),
}
"""Departments that do not come in every colour; an empty one has none."""

NO_COLOUR = frozenset(_words("dog food, cat litter, puzzle, board game, mattress"))

AUDIENCES: dict[str, Said] = {
    "men": said("mens, men's, for men, for him", "for guys, gents"),
    "women": said("womens, women's, for women, ladies", "for her, female"),
    "kids": said("kids, for kids, children's, boys, girls", "for toddlers, youth"),
}

AUDIENCE_DEPARTMENTS = frozenset({"shoes", "clothing"})

FEATURES: dict[str, Said] = {
    "shoes": said("waterproof, vegan, lightweight, breathable, wide fit", "slip resistant"),
    "clothing": said("waterproof, machine washable, organic, lightweight, slim fit", "windproof"),
    "accessories": said("waterproof, vegan, handmade, foldable", "scratch resistant"),
    "electronics": said("wireless, bluetooth, rechargeable, portable, noise cancelling", "water resistant"),
    "furniture": said("height adjustable, foldable, handmade, dimmable", "stain resistant"),
    "bedroom": said("hypoallergenic, organic, machine washable, breathable", "fire retardant"),
    "kitchen": said("dishwasher safe, non-stick, bpa free, leakproof", "oven safe"),
    "appliances": said("cordless, energy saving, programmable, quiet", "compact"),
    "beauty": said("vegan, fragrance free, organic, travel size", "cruelty free"),
    "sports": said("waterproof, lightweight, foldable, non-slip", "ultralight"),
    "toys": said("handmade, educational, washable, glow in the dark", "battery free"),
    "pets": said("grain free, organic, washable, reflective", "odour free"),
    "pantry": said("organic, fair trade, decaf, sugar free", "gluten free"),
}

CITIES = said(
    "Leeds, Bristol, Lyon, Hamburg, Porto, Turin, Vienna, Ghent, Malmo, Cork, New York, San Diego, Boston, Glasgow",
    "Seville, Krakow, Denver, Utrecht, Cardiff, Salt Lake City, Marseille, Oslo",
)
