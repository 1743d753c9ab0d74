"""Recommend to a newcomer of whom two ratings and one attribute are known."""

from metarec import Recommender, create_algorithm, load_dataset, split

households = split(load_dataset("complete-journey"))  # a fifth of them are new: fit sees none of theirs
algorithm = create_algorithm("bayesian").fit(households.train)
recommender = Recommender.from_split(algorithm, households)

ratings = {"Broccoli/Cauliflower: Broccoli Whole&Crowns": 5, "Breakfast Sweets: Sw Gds:Donuts": 1}
newcomer = recommender.adapt(ratings, {"age": "35-44"})
for one in newcomer.recommend(4):
    print(f"{one.score:.2f} ± {one.deviation:.2f}  {one.title}")
    for reason in one.because:
        print(f"     {reason.contribution:+.2f}  for {reason.title}")
