from campaign.runner import main

main()  # in a module of its own: processes that are spawned import it by its name
