"""Words of captions: what people call the things that COCO, VOC and PartWorld label (data only, no logic).

A *concept* is a thing under its COCO or PartWorld name; its row lists the other singular words for it,
separated by commas. :mod:`glass_fast.captions.matching` adds the plurals and looks for the longest phrase,
so a phrase here also protects the words inside it: "hot dog" is never a dog, whether or not hot dogs are
in the label set.

Choices were made by looking at how annotators label, not at the dictionary: a panda is a bear in COCO, a
mug a cup, a stove an oven. Words that name a thing less than about half of the time are left out ("glass",
"screen", "chicken").
"""

from __future__ import annotations


def _phrases(text: str) -> tuple[str, ...]:
    """Comma-separated phrases, which may be wrapped over lines."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(",") if phrase.strip())


CONCEPTS: dict[str, str] = {
    # people and vehicles
    "person": (
        "man, woman, boy, girl, child, kid, guy, lady, gentleman, baby, toddler, infant, adult, "
        "teenager, teen, male, female, human, pedestrian, player, baseball player, tennis player, "
        "soccer player, skier, snowboarder, skateboarder, surfer, cyclist, bicyclist, biker, "
        "motorcyclist, rider, bike rider, horse rider, bus driver, truck driver, driver, passenger, "
        "batter, pitcher, catcher, umpire, referee, athlete, swimmer, chef, waiter, waitress, cowboy, "
        "cowgirl, soldier, policeman, policewoman, police officer, officer, fireman, firefighter, "
        "worker, student, tourist, bride, groom, couple, crowd, kite surfer, kite boarder, spectator, "
        "fisherman, businessman, businesswoman, mother, father, mom, dad, grandmother, grandfather, "
        "skate boarder, snow boarder, bicycle rider, motorcycle rider, someone, somebody"
    ),
    "bicycle": "bike, mountain bike, push bike, pushbike",
    "car": (
        "automobile, sedan, suv, minivan, taxi, taxi cab, taxicab, cab, hatchback, convertible, police "
        "car, sports car, race car, motor car, limousine, limo, jeep"
    ),
    "motorcycle": "motorbike, motor bike, motor cycle, moped, motor scooter, dirt bike, dirtbike, vespa",
    "airplane": (
        "aeroplane, plane, jet, airliner, jetliner, aircraft, biplane, air plane, jumbo jet, passenger "
        "jet, fighter jet, seaplane, sea plane, jet plane, jet airplane"
    ),
    "bus": "double decker, school bus, minibus, city bus, tour bus, double decker bus, trolley bus",
    "train": (
        "locomotive, subway train, freight train, passenger train, train car, train engine, steam "
        "engine, commuter train, railway car, rail car, train carriage"
    ),
    "truck": (
        "pickup, pickup truck, pick up truck, lorry, fire truck, firetruck, fire engine, semi truck, "
        "semi, tow truck, dump truck, garbage truck, food truck, delivery truck, trailer truck, tractor "
        "trailer, big rig"
    ),
    "boat": (
        "ship, sailboat, sail boat, canoe, kayak, yacht, ferry, rowboat, row boat, speedboat, speed "
        "boat, motorboat, motor boat, gondola, fishing boat, house boat, houseboat, tugboat, tug boat, "
        "cruise ship, dinghy, catamaran"
    ),
    # street furniture
    "traffic light": (
        "traffic signal, stoplight, stop light, traffic lamp, street signal light, signal light, red "
        "light, green light"
    ),
    "fire hydrant": "hydrant, fire plug",
    "stop sign": "stopsign",
    "parking meter": "meter",
    "bench": "park bench, picnic bench",
    # animals
    "bird": (
        "seagull, gull, sea gull, pigeon, duck, duckling, goose, parrot, owl, eagle, hawk, swan, "
        "penguin, peacock, ostrich, sparrow, crow, heron, pelican, flamingo, parakeet, cockatoo, dove, "
        "finch, robin, hummingbird, rooster, hen, stork, birdie"
    ),
    "cat": "kitten, kitty, feline, tabby, tomcat, house cat, tabby cat, kitty cat",
    "dog": (
        "puppy, pup, doggy, doggie, canine, poodle, terrier, labrador, retriever, golden retriever, "
        "bulldog, bull dog, dachshund, beagle, chihuahua, pug, husky, collie, sheepdog, sheep dog, "
        "german shepherd, corgi, hound, greyhound, spaniel, dalmatian, rottweiler, puppy dog, pit bull, "
        "pitbull"
    ),
    "horse": "pony, foal, colt, mare, stallion",
    "sheep": "lamb, ewe, ram",
    "cow": "cattle, calf, bull, ox, heifer, longhorn, dairy cow, bovine",
    "elephant": "elephant calf",
    "bear": "polar bear, panda, panda bear, grizzly, grizzly bear, brown bear, black bear, bear cub",
    "zebra": "zebra foal",
    "giraffe": "giraffe calf",
    # things that people carry
    "backpack": "back pack, rucksack, knapsack, bookbag, book bag",
    "umbrella": "parasol, beach umbrella",
    "handbag": "purse, hand bag",
    "tie": "necktie, neck tie, bow tie, bowtie",
    "suitcase": "luggage, baggage, piece of luggage, suit case, luggage bag",
    # sports
    "frisbee": "frisbie, flying disc, flying disk, frisby",
    "skis": "pair of skis, set of skis",
    "snowboard": "snow board",
    "sports ball": (
        "ball, soccer ball, tennis ball, foot ball, basket ball, volley ball, volleyball, soccerball"
    ),
    "kite": "",
    "baseball bat": "bat",
    "baseball glove": "catcher mitt, catchers mitt, mitt, baseball mitt",
    "skateboard": "skate board, longboard",
    "surfboard": "surf board, boogie board, body board",
    "tennis racket": "tennis racquet, racket, racquet, tennis raquet",
    # kitchen and food
    "bottle": "wine bottle, beer bottle, water bottle, bottle of wine, bottle of beer, bottle of water",
    "wine glass": (
        "wineglass, glass of wine, glass of red wine, glass of white wine, champagne glass, champagne flute"
    ),
    "cup": "mug, coffee cup, tea cup, teacup, coffee mug, cup of coffee, cup of tea, paper cup",
    "fork": "",
    "knife": "butter knife, steak knife",
    "spoon": "teaspoon, tablespoon, wooden spoon",
    "bowl": "soup bowl, salad bowl",
    "banana": "",
    "apple": "",
    "sandwich": (
        "hamburger, burger, cheeseburger, sub, sub sandwich, hoagie, panini, cheese sandwich, toasted "
        "sandwich, chicken sandwich, club sandwich, blt"
    ),
    "orange": "tangerine, clementine, mandarin, mandarin orange",
    "broccoli": "brocolli, brocoli, broccolli, broccoli floret",
    "carrot": "baby carrot, carrot stick",
    "hot dog": "hotdog, chili dog, corn dog, corndog, hot dog bun",
    "pizza": "pizza pie, pepperoni pizza, slice of pizza, pizza slice, cheese pizza",
    "donut": "doughnut, do nut, dough nut",
    "cake": (
        "cupcake, cup cake, birthday cake, wedding cake, chocolate cake, carrot cake, cheesecake, cheese cake"
    ),
    # furniture and rooms
    "chair": (
        "armchair, arm chair, lawn chair, folding chair, beach chair, office chair, high chair, desk chair"
    ),
    "couch": "sofa, loveseat, love seat, settee",
    "potted plant": (
        "plant, house plant, houseplant, pot plant, plant pot, flower pot, flowerpot, potted flower, "
        "pottedplant"
    ),
    "bed": "bunk bed, hospital bed",
    "dining table": (
        "table, dinner table, kitchen table, picnic table, dining room table, wooden table, "
        "diningtable, table top, tabletop, restaurant table"
    ),
    "toilet": "toilette, commode, toilet seat, toilet bowl, toilet tank, toilet lid",
    "sink": "kitchen sink, bathroom sink, wash basin, washbasin",
    # devices
    "tv": (
        "television, television set, tv set, monitor, tv monitor, computer monitor, flat screen tv, "
        "flatscreen tv, flat screen television, tv screen, television screen, computer screen, "
        "tvmonitor, flat screen, flatscreen"
    ),
    "laptop": "laptop computer, notebook computer, lap top, macbook, lap top computer",
    "mouse": "computer mouse",
    "remote": (
        "remote control, remote controller, tv remote, wii remote, wii controller, wiimote, wii mote, "
        "game controller"
    ),
    "keyboard": "computer keyboard, key board",
    "cell phone": (
        "cellphone, phone, mobile phone, smartphone, smart phone, iphone, cellular phone, flip phone"
    ),
    "microwave": "microwave oven",
    "oven": "stove, stovetop, stove top, stove top oven, stove oven, kitchen stove, pizza oven",
    "toaster": "toaster oven",
    "refrigerator": "fridge, refridgerator, freezer, refrigerator freezer, frig",
    # small things
    "book": "",
    "clock": "clock tower, clock face, alarm clock, clocktower, wall clock",
    "vase": "flower vase, vase of flowers",
    "scissors": "scissor, pair of scissors, shears",
    "teddy bear": (
        "teddy, stuffed bear, stuffed teddy bear, teddybear, toy bear, stuffed animal, stuffed toy, "
        "plush bear"
    ),
    "hair drier": "hair dryer, hairdryer, hairdrier, blow dryer, blow drier, blowdryer",
    "toothbrush": "tooth brush",
    # PartWorld only
    "house": "cottage, tree house, treehouse, farm house, farmhouse",
    "tree": (
        "palm tree, pine tree, fir tree, christmas tree, oak tree, apple tree, orange tree, banana tree"
    ),
    "snowman": "snow man",
    "mushroom": "toadstool",
}

NOT_A_CLASS: tuple[str, ...] = _phrases("""
    airplane hangar, apple computer, apple juice, apple laptop, apple pie, ball cap, ball field, ball game,
    ball park, banana bread, banana peel, baseball cap, bed of a truck, bed of the truck, bed room, bench
    press, bicycle seat, bike lane, bike path, bike rack, bike seat, bike trail, bird bath, bird cage, bird
    feeder, bird house, bird seed, boat dock, boat house, boat ramp, book case, book shelf, book store, bottle
    cap, bottle opener, bowl cut, bus lane, bus shelter, bus station, bus stop, bus terminal, cake pan, cake
    stand, car door, car park, car seat, car wash, cat fish, cat food, cat litter, cat walk, chair lift,
    couple of, dog bed, dog bowl, dog collar, dog food, dog house, dog leash, dog tag, driver seat, duck tape,
    elephant ear, flower bed, fork lift, head phone, horse back, horse radish, horse shoe, hot plate, jet ski,
    jet stream, kite string, knife block, knife rack, laptop bag, laptop case, light bulb, light house, male
    bathroom, man hole, man made, manhole cover, men restroom, men room, mens restroom, mens room, mickey
    mouse, minnie mouse, motorcycle seat, mouse pad, mouse trap, orange juice, oven glove, oven mitt, oven
    rack, oven timer, passenger seat, pay phone, phone book, phone booth, phone pole, pitcher mound,
    pitcher of, pitchers mound, pizza box, pizza crust, pizza cutter, pizza dough, pizza pan, pizza parlor,
    pizza place, pizza shop, power plant, red light district, sandwich bag, sandwich shop, semi circle,
    sink hole, stop watch, stuffed rabbit, table cloth, table lamp, table tennis, telephone pole,
    television show, television stand, tie dye, tie dyed, toilet brush, toilet paper, toilet roll, toilet
    tissue, train depot, train platform, train rail, train station, train track, train yard, truck bed, tv
    show, tv stand, umbrella stand, women restroom, women room, womens restroom, womens room, zebra
    crossing, zebra print, zebra stripe
""")
"""Phrases that contain a class word but show (mostly) something else; they are consumed and give nothing."""

IRREGULAR_PLURALS: dict[str, tuple[str, ...]] = {
    "person": ("people", "persons"),
    "man": ("men",),
    "woman": ("women",),
    "child": ("children",),
    "gentleman": ("gentlemen",),
    "policeman": ("policemen",),
    "policewoman": ("policewomen",),
    "fireman": ("firemen",),
    "fisherman": ("fishermen",),
    "businessman": ("businessmen",),
    "businesswoman": ("businesswomen",),
    "snowman": ("snowmen", "snowmans"),
    "knife": ("knives",),
    "calf": ("calves",),
    "mouse": ("mice", "mouses"),
    "goose": ("geese",),
    "ox": ("oxen",),
    "foot": ("feet",),
    "tooth": ("teeth",),
    "sheep": ("sheep", "sheeps"),
    "cattle": ("cattle",),
    "aircraft": ("aircraft", "aircrafts"),
    "broccoli": ("broccoli", "broccolis"),
    "luggage": ("luggage", "luggages"),
    "baggage": ("baggage", "baggages"),
    "skis": ("skis",),
    "scissors": ("scissors",),
    "shears": ("shears",),
    "bus": ("buses", "busses"),
    "sofa": ("sofas",),
    "giraffe": ("giraffes", "giraffe"),
    "elephant": ("elephants",),
    "zebra": ("zebras", "zebra"),
    "piece of luggage": ("pieces of luggage",),
    "pair of scissors": ("pairs of scissors",),
    "pair of skis": ("pairs of skis",),
    "set of skis": ("sets of skis",),
    "glass of wine": ("glasses of wine",),
    "glass of red wine": ("glasses of red wine",),
    "glass of white wine": ("glasses of white wine",),
    "cup of coffee": ("cups of coffee",),
    "cup of tea": ("cups of tea",),
    "bottle of wine": ("bottles of wine",),
    "bottle of beer": ("bottles of beer",),
    "bottle of water": ("bottles of water",),
    "slice of pizza": ("slices of pizza",),
    "vase of flowers": ("vases of flowers",),
}
"""Plurals that the spelling rules do not give; keyed by the whole phrase or by its last word."""

ALWAYS_PLURAL: frozenset[str] = frozenset({"skis", "scissors", "people", "shears", "cattle", "luggage"})
"""Class names that take no article in "a photo of ..."."""

AGE_WORDS: tuple[str, ...] = ("baby", "infant", "mother", "father", "mom", "adult", "male", "female", "teen")
"""Before an animal these describe the animal: "a baby elephant" shows no person."""

ANIMALS: tuple[str, ...] = (
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
)

COLOURS: tuple[str, ...] = (
    "black",
    "blue",
    "brown",
    "gold",
    "gray",
    "green",
    "grey",
    "pink",
    "purple",
    "red",
    "silver",
    "tan",
    "white",
    "yellow",
)

COLOUR_CLASSES: tuple[str, ...] = ("orange",)
"""Singular class words that are colours too: they count only where they cannot describe what follows."""

NOUN_FOLLOWERS: frozenset[str] = frozenset(
    _phrases("""
    a, across, after, against, along, an, and, are, as, at, atop, be, behind, being, beside, between, but,
    by, down, for, from, has, have, he, in, inside, into, is, it, its, near, next, of, off, on, onto, or,
    out, over, resting, she, sits, sitting, some, that, the, their, them, there, they, this, to, together,
    top, under, up, was, were, which, while, with
""")
)
"""Words after which a colour word has been a noun ("an orange on a plate", but not "an orange plate")."""

NEGATIONS: frozenset[str] = frozenset({"no", "without"})
"""Directly before a class word (or before "any") they say that it is not there."""

OWNERS: frozenset[str] = frozenset({"its", "her", "his", "their"})
"""Before an age word, after an animal: "a zebra and its baby" shows no person."""
